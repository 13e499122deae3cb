import { useState } from 'preact/hooks';
import { signIn } from './requests.js';

/** Asks for a token. `why`: what it is for. */
export function SignIn({
  why,
  onSignedIn,
  onCancel,
}: {
  why: string;
  onSignedIn: () => void;
  onCancel?: () => void;
}) {
  const [token, setToken] = useState('');
  const [problem, setProblem] = useState('');
  const submit = async (event: Event) => {
    event.preventDefault();
    try {
      await signIn(token);
      onSignedIn();
    } catch (error) {
      setProblem((error as Error).message);
    }
  };
  return (
    <main class="sign-in">
      <form onSubmit={submit}>
        <h1>switchyard</h1>
        <p>{why}</p>
        <label for="token">Token</label>
        <input
          id="token"
          type="password"
          autocomplete="current-password"
          required
          value={token}
          aria-invalid={problem !== ''}
          aria-describedby="problem"
          onInput={(event) => setToken(event.currentTarget.value)}
        />
        <p id="problem" class="failed" role="alert">
          {problem}
        </p>
        <div class="choices">
          {onCancel && (
            <button type="button" onClick={onCancel}>
              Cancel
            </button>
          )}
          <button type="submit" class="primary">
            Sign in
          </button>
        </div>
      </form>
    </main>
  );
}

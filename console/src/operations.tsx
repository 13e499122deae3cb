import { useEffect, useRef, useState } from 'preact/hooks';
import { operate } from './requests.js';

/** Something that an operator is asked about before it is done. */
export interface Question {
  title: string;
  text: string;
  label: string;
  operation: 'mark' | 'rebalance';
  body: object;
}

export type Ask = (question: Question) => void;

/** What went well is shown for so long. */
const saidMs = 8_000;

/** Asks once more, does it, and says how it went. */
export function Operations({ question, onDone }: { question: Question | null; onDone: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [said, setSaid] = useState<{ text: string; failed: boolean } | null>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    if (said === null || said.failed) return;
    const timer = window.setTimeout(() => setSaid(null), saidMs);
    return () => clearTimeout(timer);
  }, [said]);
  useEffect(() => {
    if (question !== null) dialog.current!.showModal();
  }, [question]);
  const run = async ({ operation, body }: Question) => {
    setBusy(true);
    try {
      setSaid({ text: await operate(operation, body), failed: false });
    } catch (error) {
      setSaid({ text: (error as Error).message, failed: true });
    }
    setBusy(false);
    dialog.current!.close();
  };
  return (
    <>
      <dialog ref={dialog} onClose={onDone} aria-labelledby="question-title" aria-describedby="question-text">
        <h2 id="question-title">{question?.title}</h2>
        <p id="question-text">{question?.text}</p>
        <div class="choices">
          <button type="button" onClick={() => dialog.current!.close()}>
            Cancel
          </button>
          <button type="button" class="primary" disabled={busy} onClick={() => question && run(question)}>
            {question?.label}
          </button>
        </div>
      </dialog>
      <div class="said" role="status">
        {said && (
          <p class={said.failed ? 'failed' : ''}>
            {said.text}{' '}
            <button type="button" class="plain" aria-label="Dismiss" onClick={() => setSaid(null)}>
              ×
            </button>
          </p>
        )}
      </div>
    </>
  );
}

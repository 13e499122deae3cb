import { useEffect, useState } from 'preact/hooks';
import type { ClusterSummary, Session } from '../../services/coordinator/console/wire.js';
import { Charts } from './charts.js';
import { NodesPanel } from './nodes.js';
import { Operations, type Question } from './operations.js';
import { PlacementPanel } from './placement.js';
import { readSession, signOut } from './requests.js';
import { BatchesPanel, EventsPanel, PlanPanel } from './side.js';
import { SignIn } from './sign-in.js';
import { follow, type Known } from './store.js';
import { useTheme } from './theme.js';
import { TrafficPanel } from './traffic.js';

const askAgainMs = 2_000;

export function App() {
  const [session, setSession] = useState<Session | null>(null);
  const [wantsMore, setWantsMore] = useState(false);
  const look = () => {
    setWantsMore(false);
    // A coordinator that does not answer is asked again; whoever was signed in sees meanwhile what is known.
    readSession().then(setSession, () => setTimeout(look, askAgainMs));
  };
  useEffect(look, []);
  const theme = useTheme();
  if (session === null) return <p class="quiet alone">Waiting for the coordinator…</p>;
  if (!session.view)
    return (
      <SignIn
        why="The token of a client shows the cluster; the operator's may change it too."
        onSignedIn={look}
      />
    );
  if (wantsMore)
    return (
      <SignIn why="The operator's token may drain workers and rebalance." onSignedIn={look} onCancel={look} />
    );
  return <Cluster session={session} theme={theme} onSession={look} onMore={() => setWantsMore(true)} />;
}

interface ClusterProps {
  session: Session;
  theme: ReturnType<typeof useTheme>;
  /** The session may be another now. */
  onSession: () => void;
  onMore: () => void;
}

function Cluster({ session, theme, onSession, onMore }: ClusterProps) {
  const [{ state, connected }, setKnown] = useState<Known>({ state: null, connected: false });
  const [question, setQuestion] = useState<Question | null>(null);
  useEffect(() => follow(setKnown, onSession), []);
  const cluster = state?.cluster.now;
  const ask = session.operate ? setQuestion : null;
  const samples = Object.values(state?.samples ?? {});
  return (
    <>
      <Bar cluster={cluster} session={session} theme={theme} onSession={onSession} onMore={onMore} />
      {state !== null && !connected && (
        <p class="banner" role="alert">
          The coordinator does not answer. What is shown is what it said last; trying again.
        </p>
      )}
      <main class={connected ? '' : 'stale'}>
        {cluster === undefined || state === null ? (
          <p class="quiet">Waiting for the coordinator…</p>
        ) : !cluster.leading ? (
          <p class="banner">
            {cluster.reason}
            {cluster.leaderUrl !== '' && (
              <>
                {': '}
                <a href={`${cluster.leaderUrl}/console/`}>its console</a>
              </>
            )}
          </p>
        ) : (
          <>
            {!cluster.ready && <p class="banner">Not ready: {cluster.reason}</p>}
            <Charts samples={state.samples} shown={theme.shown} />
            <PlacementPanel state={state} shown={theme.shown} />
            <div class="columns">
              <div>
                <NodesPanel nodes={state.nodes} ask={ask} />
                <TrafficPanel state={state} />
              </div>
              <div>
                <PlanPanel cluster={cluster} ask={ask} />
                <BatchesPanel batches={state.batches} live={samples.at(-1)?.batches ?? 0} />
                <EventsPanel events={state.events} />
              </div>
            </div>
          </>
        )}
      </main>
      <Operations question={question} onDone={() => setQuestion(null)} />
    </>
  );
}

function Bar({
  cluster,
  session,
  theme,
  onSession,
  onMore,
}: Omit<ClusterProps, 'theme'> & { cluster: ClusterSummary | undefined; theme: ClusterProps['theme'] }) {
  const leave = () => void signOut().then(onSession);
  return (
    <header class="bar">
      <svg class="mark" viewBox="0 0 24 24" aria-hidden="true">
        <path d="M2 12h6c4 0 4-7 8-7h6M8 12h14M8 12c4 0 4 7 8 7h6" />
      </svg>
      <h1>switchyard</h1>
      {cluster && (
        <>
          <span class="model">
            {cluster.model.name}{' '}
            <small>
              at {cluster.coordinator}, version {cluster.version}
            </small>
          </span>
          <span class={`health ${cluster.ready ? 'ready' : 'not-ready'}`} role="status">
            {cluster.ready ? 'ready' : cluster.leading ? 'not ready' : 'does not lead'}
          </span>
        </>
      )}
      <nav aria-label="Session">
        <button type="button" class="plain" onClick={theme.next}>
          Colours: {theme.theme}
        </button>
        {!session.operate && (
          <button type="button" class="plain" onClick={onMore}>
            Sign in as operator
          </button>
        )}
        {session.tokens && (
          <button type="button" class="plain" onClick={leave}>
            Sign out
          </button>
        )}
      </nav>
    </header>
  );
}

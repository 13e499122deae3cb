import type { ConsoleChange, ConsoleState } from '../../services/coordinator/console/wire.js';

/** What the page knows, by part and key, and how it stands with the coordinator. */
export interface Known {
  /** Null: nothing has come yet. */
  state: ConsoleState | null;
  connected: boolean;
}

const empty = (): ConsoleState => ({
  cluster: {},
  nodes: {},
  links: {},
  traffic: {},
  batches: {},
  copies: {},
  loads: {},
  samples: {},
  events: {},
});

/** Values are replaced, never changed, so that what is drawn of one can be kept as long as it is the same. */
function apply(state: ConsoleState, change: ConsoleChange): ConsoleState {
  const next = { ...state };
  for (const [part, values] of Object.entries(change) as [keyof ConsoleState, Record<string, unknown>][]) {
    const merged: Record<string, unknown> = { ...state[part] };
    for (const [key, value] of Object.entries(values)) {
      if (value === null) delete merged[key];
      else merged[key] = value;
    }
    next[part] = merged as never;
  }
  return next;
}

const againMs = 2_000;

/**
 * Follows the feed, and begins again whenever it ends. `onRefused`: the coordinator answered, but with no stream; who is signed in may have changed.
 * Returns what ends it.
 */
export function follow(onKnown: (known: Known) => void, onRefused: () => void): () => void {
  const known: Known = { state: null, connected: false };
  let source: EventSource;
  let timer = 0;
  const tell = (change: Partial<Known>) => {
    Object.assign(known, change);
    onKnown({ ...known });
  };
  const open = () => {
    source = new EventSource('/console/feed');
    const parsed = ({ data }: MessageEvent<string>) => JSON.parse(data) as ConsoleChange;
    source.addEventListener('state', (event) =>
      tell({ state: apply(empty(), parsed(event)), connected: true }),
    );
    source.addEventListener('change', (event) => tell({ state: apply(known.state!, parsed(event)) }));
    source.addEventListener('error', () => {
      tell({ connected: false });
      // Otherwise the browser tries again by itself.
      if (source.readyState !== EventSource.CLOSED) return;
      timer = window.setTimeout(open, againMs);
      onRefused();
    });
  };
  open();
  return () => {
    clearTimeout(timer);
    source.close();
  };
}

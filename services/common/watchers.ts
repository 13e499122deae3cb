import type { ServerWritableStream } from '@grpc/grpc-js';
import { SwitchyardError } from './errors.js';
import { FairSlots } from './fair-slots.js';
import type { ClusterStateInput } from './generated/switchyard/v1/ClusterState.js';
import type { ClusterViewInput } from './generated/switchyard/v1/ClusterView.js';
import type { ModelDescriptionInput } from './generated/switchyard/v1/ModelDescription.js';
import type { WatchClusterRequest } from './generated/switchyard/v1/WatchClusterRequest.js';
import { toServiceError } from './status.js';

/** Half of the calls that a server takes beside batches. */
const watchersMax = 2048;

type WatchCall = ServerWritableStream<WatchClusterRequest, ClusterStateInput>;

/** The cluster as clients see it. */
export function clusterState(view: ClusterViewInput, model: ModelDescriptionInput): ClusterStateInput {
  const routers = (view.nodes ?? [])
    .filter(({ role, state }) => role === 'ROUTER' && state !== 'DEAD')
    .map(({ name = '', address = '', host = '', state = 'JOINING', messageBytesMax = 0 }) => ({
      name,
      address,
      host,
      state,
      messageBytesMax,
    }));
  return { routers, model, ready: view.ready ?? false, reason: view.reason ?? '' };
}

/** A state, and a text that is equal for equal ones. */
interface Told {
  state: ClusterStateInput;
  text: string;
}

/** The server's side of WatchCluster: tells clients the cluster's state, at once and on each change. */
export class Watchers {
  private readonly open = new Set<Watcher>();
  private readonly slots: FairSlots;
  private ended = false;

  /**
   * `read`: the state as of now. `max`: clients at once, shared by connections; who comes beyond gets the state once, and
   * asks again later.
   */
  constructor(
    private readonly read: () => ClusterStateInput,
    max = watchersMax,
  ) {
    this.slots = new FairSlots(max);
  }

  accept(call: WatchCall): void {
    const watcher = new Watcher(call);
    watcher.tell(this.latest());
    if (this.ended) {
      watcher.end();
      return;
    }
    const giveBack = this.slots.take(call.getPeer());
    if (giveBack === null) {
      watcher.end(tooMany(this.slots, call.getPeer()));
      return;
    }
    this.open.add(watcher);
    call.on('cancelled', () => {
      this.open.delete(watcher);
      giveBack();
    });
  }

  /** To be called when the state may have changed. */
  notify(): void {
    if (this.open.size === 0) return;
    const latest = this.latest();
    for (const watcher of this.open) watcher.tell(latest);
  }

  /** Tells the state once more and ends all calls, so that clients turn to other servers. Idempotent. */
  end(): void {
    this.notify();
    this.ended = true;
    for (const watcher of this.open) watcher.end();
    this.open.clear();
  }

  private latest(): Told {
    const state = this.read();
    return { state, text: JSON.stringify(state) };
  }
}

/** One client's call. One message is on its way at a time, then the latest state follows: a slow client holds no queue. */
class Watcher {
  private told = '';
  private writing = false;
  private next: ClusterStateInput | null = null;

  constructor(private readonly call: WatchCall) {}

  tell({ state, text }: Told): void {
    if (text === this.told) return;
    this.told = text;
    this.next = state;
    if (!this.writing) this.write();
  }

  end(error?: SwitchyardError): void {
    this.write();
    if (error) this.call.emit('error', toServiceError(error));
    else this.call.end();
  }

  private write(): void {
    const { next } = this;
    if (next === null) return;
    this.next = null;
    this.writing = true;
    this.call.write(next, () => {
      this.writing = false;
      this.write();
    });
  }
}

function tooMany(slots: FairSlots, peer: string): SwitchyardError {
  const watches = slots.heldBy(peer);
  const text = `the connection watches the cluster ${watches} times; allowed: fewer than are free of ${slots.max}, now ${slots.free}`;
  return new SwitchyardError('RESOURCE_EXHAUSTED', text, {
    watches,
    free: slots.free,
    watchesMax: slots.max,
  });
}

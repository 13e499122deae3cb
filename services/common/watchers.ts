import type { ServerWritableStream } from '@grpc/grpc-js';
import type { EncodedMessage } from './encoded-message.js';
import { SwitchyardError } from './errors.js';
import { FairSlots } from './fair-slots.js';
import type { ClusterStateInput } from './generated/switchyard/v1/ClusterState.js';
import type { ClusterViewInput } from './generated/switchyard/v1/ClusterView.js';
import type { ModelDescriptionInput } from './generated/switchyard/v1/ModelDescription.js';
import type { WatchClusterRequest } from './generated/switchyard/v1/WatchClusterRequest.js';
import { encodeState } from './protocol.js';
import { toServiceError } from './status.js';

/** Half of the calls that a server takes beside batches. */
const watchersMax = 2048;

type WatchCall = ServerWritableStream<WatchClusterRequest, ClusterStateInput | EncodedMessage>;

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

/** The server's side of WatchCluster: tells clients the cluster's state, at once and on each change. */
export class Watchers {
  private readonly open = new Set<Watcher>();
  private readonly slots: FairSlots;
  private ended = false;
  private latest: EncodedMessage | null = null;

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
    watcher.tell(this.encode());
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
    const latest = this.encode();
    for (const watcher of this.open) watcher.tell(latest);
  }

  /** Tells the state once more and ends all calls, so that clients turn to other servers. Idempotent. */
  end(): void {
    this.notify();
    this.ended = true;
    for (const watcher of this.open) watcher.end();
    this.open.clear();
  }

  /** The state as of now; the same message as long as it is the same state. */
  private encode(): EncodedMessage {
    const state = encodeState(this.read());
    if (!this.latest?.bytes.equals(state.bytes)) this.latest = state;
    return this.latest!;
  }
}

/** One client's call. One message is on its way at a time, then the latest state follows: a slow client holds no queue. */
class Watcher {
  private told: EncodedMessage | null = null;
  private writing = false;
  private next: EncodedMessage | null = null;

  constructor(private readonly call: WatchCall) {}

  tell(state: EncodedMessage): void {
    if (state === this.told) return;
    this.told = state;
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

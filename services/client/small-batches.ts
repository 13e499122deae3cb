import { SwitchyardError } from '../common/errors.js';
import type { ClusterState } from '../common/generated/switchyard/v1/ClusterState.js';
import type { RouterDescription } from '../common/generated/switchyard/v1/RouterDescription.js';
import { sessionTokensMax } from '../transport/chunk-size.js';
import type { TransportChoice } from '../transport/link.js';
import type { BatchStream } from './batch-stream.js';
import { type SessionOpener, SessionRouters } from './session-routers.js';
import { SessionStream } from './session-stream.js';

/** Rows and routing of a batch; a larger one gains little, and is cut and flows in a call of its own. */
const smallBytesMax = 1024 * 1024;
/** How long a stream without a batch stays: routers keep a window for each. */
const idleMs = 10_000;

/** The sessions under batches that are sent one by one: for a small batch a call of its own would cost several times as much. */
export class SmallBatches {
  private readonly byTransport = new Map<TransportChoice, SessionRouters>();
  private timer: NodeJS.Timeout | null = null;

  constructor(private readonly openerFor: (transport: TransportChoice) => SessionOpener) {}

  /** Whether a batch may go this way: all of it travels in one message. `bytes`: of rows and routing. */
  fits(tokens: number, bytes: number, messageBytesMax: number): boolean {
    return tokens <= sessionTokensMax && bytes <= Math.min(smallBytesMax, messageBytesMax);
  }

  /** The way of a batch to a router. `state`: the cluster as it is known. */
  stream(router: RouterDescription, transport: TransportChoice, state: () => ClusterState): BatchStream {
    const routers = this.routers(transport);
    const choose = (tried: ReadonlySet<string>) => {
      this.timer ??= setTimeout(() => this.endIdle(), idleMs).unref();
      return routers.pick(state(), tried, router);
    };
    return new SessionStream({ router: router.address, choose });
  }

  /** Ends all streams with `reason`. */
  end(reason: SwitchyardError): void {
    if (this.timer !== null) clearTimeout(this.timer);
    for (const routers of this.byTransport.values()) routers.end(reason);
  }

  private routers(transport: TransportChoice): SessionRouters {
    const known = this.byTransport.get(transport);
    if (known !== undefined) return known;
    const made = new SessionRouters({ routers: null, ...this.openerFor(transport) });
    this.byTransport.set(transport, made);
    return made;
  }

  private endIdle(): void {
    this.timer = null;
    const reason = new SwitchyardError('CANCELLED', 'the session had no batch for a while');
    let left = 0;
    for (const routers of this.byTransport.values()) left += routers.endIdle(idleMs, reason);
    if (left > 0) this.timer = setTimeout(() => this.endIdle(), idleMs).unref();
  }
}

import type { Server, ServerWritableStream } from '@grpc/grpc-js';
import { HealthImplementation } from 'grpc-health-check';
import { SwitchyardError } from './errors.js';
import { toServiceError } from './status.js';

type WatchCall = ServerWritableStream<unknown, unknown>;

/** The service that tells whether the process lives, ready or not. */
export const livenessName = 'liveness';

/**
 * grpc.health.v1 of a server whose services have these full names; '' is the whole server. All of them begin as not serving, and do not serve
 * while the process does not live.
 */
export class Health {
  private readonly library: HealthImplementation;
  private readonly watches = new Set<WatchCall>();
  private readonly serving = new Map<string, boolean>();
  private live = true;

  constructor(names: readonly string[]) {
    for (const name of ['', ...names]) this.serving.set(name, false);
    this.serving.set(livenessName, true);
    this.library = new HealthImplementation(
      Object.fromEntries([...this.serving].map(([name, serving]) => [name, statusOf(serving)])),
    );
  }

  addTo(server: Server): void {
    // The library adds its methods to a server by itself, and tells nobody which streams are open.
    const between: Pick<Server, 'addService'> = {
      addService: (definition, { watch, ...methods }) =>
        server.addService(definition, {
          ...methods,
          watch: (call: WatchCall) => {
            this.watches.add(call);
            call.on('cancelled', () => this.watches.delete(call));
            (watch as (call: WatchCall) => void)(call);
          },
        }),
    };
    this.library.addToServer(between as Server);
  }

  setServing(name: string, serving: boolean): void {
    this.serving.set(name, serving);
    this.library.setStatus(name, statusOf(serving && this.live));
  }

  setLive(live: boolean): void {
    this.live = live;
    for (const [name, serving] of this.serving) this.library.setStatus(name, statusOf(serving && live));
  }

  /** Ends the streams of those who watch: they are no work that a server which stops would wait for. */
  endWatches(): void {
    const reason = toServiceError(new SwitchyardError('DRAINING', 'the server is stopping'));
    for (const call of this.watches) call.emit('error', reason);
    this.watches.clear();
  }
}

function statusOf(serving: boolean): 'SERVING' | 'NOT_SERVING' {
  return serving ? 'SERVING' : 'NOT_SERVING';
}

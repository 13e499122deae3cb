import type { Server, ServerWritableStream } from '@grpc/grpc-js';
import { HealthImplementation } from 'grpc-health-check';
import { SwitchyardError } from './errors.js';
import { toServiceError } from './status.js';

type WatchCall = ServerWritableStream<unknown, unknown>;

/** grpc.health.v1 of a server whose services have these full names; '' is the whole server. All of them begin as not serving. */
export class Health {
  private readonly library: HealthImplementation;
  private readonly watches = new Set<WatchCall>();

  constructor(names: readonly string[]) {
    this.library = new HealthImplementation(
      Object.fromEntries(['', ...names].map((name) => [name, 'NOT_SERVING'])),
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
    this.library.setStatus(name, serving ? 'SERVING' : 'NOT_SERVING');
  }

  /** Ends the streams of those who watch: they are no work that a server which stops would wait for. */
  endWatches(): void {
    const reason = toServiceError(new SwitchyardError('DRAINING', 'the server is stopping'));
    for (const call of this.watches) call.emit('error', reason);
    this.watches.clear();
  }
}

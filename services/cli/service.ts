import { type Running, untilSignal } from '../common/lifecycle.js';
import type { OptionHelp } from './command.js';

const better = 'better in a file, where ps cannot see it';

/** Help of `clientTokenFields`. */
export const clientTokenHelp = {
  clientToken: ['token', `what clients must present; ${better}`],
  clientTokenFile: ['file', 'file that holds the client token'],
} as const satisfies Record<string, OptionHelp>;

/** Help of the tokens in `serverFields`. */
export const serverTokenHelp = {
  nodeToken: ['token', `what workers and routers present to the coordinator; ${better}`],
  nodeTokenFile: ['file', 'file that holds the node token'],
  operatorToken: ['token', `what readers of /metrics, /state and reflection must present; ${better}`],
  operatorTokenFile: ['file', 'file that holds the operator token'],
} as const satisfies Record<string, OptionHelp>;

/** Help of the keys in `serverFields`. */
export const serverHelp = {
  host: ['address', 'address to listen on; other than loopback needs tokens'],
  port: ['n', 'port of the gRPC server; 0: a free one'],
  metricsPort: ['n', 'port of /metrics, /healthz, /readyz and /state; 0: a free one'],
  ...serverTokenHelp,
  insecure: [null, 'listen beyond loopback without tokens'],
  logLevel: ['level', 'trace, debug, info, warn, error or silent'],
  trace: ['file', 'write what this process does and when, for Perfetto (Chrome trace-event JSON)'],
} as const satisfies Record<string, OptionHelp>;

/** Runs a service until a signal, the end of the parent process that supervises it, or its own end. */
export async function serve(start: () => Promise<Running>): Promise<void> {
  const orphaned = new Promise<string>((resolve) => {
    if (!process.connected) return;
    process.once('disconnect', () => resolve('the parent process ended'));
    // Waiting for the parent alone must not keep this process alive.
    process.channel?.unref();
  });
  const signalled = untilSignal();
  const running = await start();
  const reason = await Promise.race([signalled, orphaned, running.stopped.then(() => null)]);
  if (reason !== null) await running.stop(reason);
  await running.stopped;
}

import { type Running, untilSignal } from '../common/lifecycle.js';
import type { OptionHelp } from './command.js';

/** Help of the keys in `serverFields`. */
export const serverHelp = {
  host: ['address', 'address to listen on; other than loopback needs a token'],
  port: ['n', 'port of the gRPC server; 0: a free one'],
  metricsPort: ['n', 'port of /metrics, /healthz, /readyz and /state; 0: a free one'],
  token: [
    'token',
    'bearer token of the cluster; better in SWITCHYARD_TOKEN or --token-file, where ps cannot see it',
  ],
  tokenFile: ['file', 'file that holds the bearer token'],
  insecure: [null, 'listen beyond loopback without a token'],
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

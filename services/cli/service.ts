import { processMs, type Running, untilSignal } from '../common/lifecycle.js';
import type { OptionHelp } from './command.js';
import type { Listening } from './local-process.js';

const better = 'better in a file, where ps cannot see it';

export const allowPlaintextText = 'with TLS: let UCX carry rows between hosts as they are';

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

/** Help of `serverTlsFields`. */
export const serverTlsHelp = {
  tlsCa: ['file', 'PEM file of who signs the certificates of the cluster'],
  tlsCert: ['file', 'PEM file of the certificate to show: everything is encrypted'],
  tlsKey: ['file', 'PEM file of its key'],
  tlsClientCa: ['file', 'PEM file of who signs the certificates of callers, which are asked for'],
} as const satisfies Record<string, OptionHelp>;

/** Help of the keys in `serverFields`. */
export const serverHelp = {
  host: ['address', 'address to listen on; other than loopback needs tokens'],
  port: ['n', 'port of the gRPC server; 0: a free one'],
  metricsPort: ['n', 'port of /metrics, /healthz, /readyz and /state; 0: a free one'],
  ...serverTokenHelp,
  ...serverTlsHelp,
  insecure: [null, 'listen beyond loopback without tokens or certificates'],
  logLevel: ['level', 'trace, debug, info, warn, error or silent'],
  standstillMs: ['ms', 'how long own work may stand still before health fails'],
  trace: ['file', 'write what this process does and when, for Perfetto (Chrome trace-event JSON)'],
  otlpEndpoint: ['url', 'send traces of sampled batches here by OpenTelemetry (OTLP over HTTP)'],
  traceSampling: ['share', 'of the batches that are sampled where clients have not decided, 0 to 1'],
} as const satisfies Record<string, OptionHelp>;

/** Before a process is ended that takes too long. */
const overdueMs = 250;

/**
 * Runs a service until a signal, the end of the parent process that supervises it, or its own end. From then on the process
 * ends within what the service says it takes, whatever holds it up.
 */
export async function serve(start: () => Promise<Running>): Promise<void> {
  const asked = Promise.race([untilSignal(), orphaned()]);
  const { native } = await import('../../native/index.js');
  const running = await Promise.race([start(), asked]);
  if (typeof running === 'string') {
    // Nothing is served yet that would have to end in order. But a read may never return, and an exit waits for it.
    native.endWithin(processMs, 0);
    process.exit(0);
  }
  tellParent({ address: running.address, metricsUrl: running.metricsUrl });
  let exitStatus = 1;
  try {
    const reason = await Promise.race([asked, running.stopped.then(() => null)]);
    if (reason !== null) {
      native.endWithin(running.endMsMax, exitStatus);
      sayWhenOverdue(running.endMsMax);
      await running.stop(reason);
    }
    await running.stopped;
    exitStatus = 0;
  } finally {
    // All is closed; connections to peers that do not read, or what runs on native threads, may still be open.
    native.endWithin(processMs, exitStatus);
  }
}

/** To a parent that supervises this process, whatever the log says. One that is gone needs no answer. */
function tellParent(listening: Listening): void {
  process.send?.(listening, undefined, undefined, () => {});
}

/** Resolves with the reason when the parent process is gone that supervises this one. */
function orphaned(): Promise<string> {
  return new Promise((resolve) => {
    if (!process.connected) return;
    process.once('disconnect', () => resolve('the parent process ended'));
    // Waiting for the parent alone must not keep this process alive.
    process.channel?.unref();
  });
}

function sayWhenOverdue(endMsMax: number): void {
  const say = () => {
    const open = process.getActiveResourcesInfo().join(' ');
    process.stderr.write(`switchyard: still running after ${endMsMax - overdueMs} ms, with ${open}\n`);
  };
  setTimeout(say, endMsMax - overdueMs).unref();
}

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { fixedPort } from './fixed-port.js';

export interface PerftestResult {
  /** Of the whole test. */
  bytesPerSecond: number;
  messagesPerSecond: number;
  /** One way, half of a round trip. */
  latencySeconds: number;
}

const attempts = 20;

/**
 * UCX's own benchmark between two processes of this machine; null where it is not installed (Debian: ucx-utils).
 * `transports` becomes UCX_TLS.
 */
export async function runPerftest(
  test: 'ucp_am_bw' | 'ucp_am_lat',
  transports: string,
  bytes: number,
  iterations: number,
): Promise<PerftestResult | null> {
  const port = await fixedPort();
  const env = { ...process.env, UCX_TLS: transports, UCX_WARN_UNUSED_ENV_VARS: 'n' };
  const start = (args: string[]) =>
    spawn('ucx_perftest', [...args, '-p', String(port)], { env, stdio: ['ignore', 'pipe', 'ignore'] });
  const server = start([]);
  server.stdout.resume();
  if (!(await started(server))) return null;
  const warmup = Math.max(10, Math.round(iterations / 10));
  const args = [
    '127.0.0.1',
    '-t',
    test,
    '-s',
    String(bytes),
    '-n',
    String(iterations),
    '-w',
    String(warmup),
    '-f',
  ];
  try {
    for (let attempt = 0; attempt < attempts; attempt++) {
      const text = await outputOf(start(args));
      const result = parse(text);
      if (result !== null) return result;
      // The server may not listen yet.
      await delay(100);
    }
    throw new Error('ucx_perftest gave no result');
  } finally {
    server.kill();
  }
}

async function started(child: ChildProcess): Promise<boolean> {
  return Promise.race([once(child, 'spawn').then(() => true), once(child, 'error').then(() => false)]).catch(
    () => false,
  );
}

async function outputOf(child: ChildProcess): Promise<string> {
  let text = '';
  child.stdout!.setEncoding('utf8').on('data', (piece: string) => {
    text += piece;
  });
  await once(child, 'close');
  return text;
}

/** The last line: iterations, three latencies in µs, two bandwidths in MiB/s, two message rates; the second of two is of the whole. */
function parse(text: string): PerftestResult | null {
  const numbers = text.trim().split('\n').at(-1)!.trim().split(/\s+/).map(Number);
  if (numbers.length < 8 || numbers.some(Number.isNaN)) return null;
  return {
    latencySeconds: numbers[3]! / 1e6,
    bytesPerSecond: numbers[5]! * 2 ** 20,
    messagesPerSecond: numbers[7]!,
  };
}

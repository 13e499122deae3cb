import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { Client, credentials } from '@grpc/grpc-js';
import { afterEach, expect, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import { parseLine } from '../../services/cli/local-process.js';
import { endMsMax } from '../../services/common/lifecycle.js';

const drainMs = 0;
/** Each is refused with a line of more than 200 bytes: together more than pipe and reader keep, or than the process does too. */
const callsToStall = 2_000;
const callsToDrop = 4_000;
const callsAtOnce = 200;
const slackMs = 5_000;

let coordinator: ChildProcess | null = null;
let caller: Client | null = null;

afterEach(() => {
  caller?.close();
  coordinator?.kill('SIGKILL');
});

/** A coordinator whose standard output is read up to its address, and then by nobody. */
async function startUnread(): Promise<ChildProcess> {
  const program = commandLine();
  const flags = ['--preset', 'tiny', '--no-router', '--client-token', 'x'.repeat(32)];
  const ports = ['--port', '0', '--metrics-port', '0', '--drain-ms', String(drainMs)];
  const started = spawn(process.execPath, [program, 'coordinator', ...flags, ...ports], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  coordinator = started;
  const [said] = (await once(started.stdout, 'data')) as [Buffer];
  started.stdout.pause();
  const { address } = parseLine(said.toString().trim().split('\n').at(-1)!) as { address: string };
  caller = new Client(address, credentials.createInsecure());
  return started;
}

/** Resolves with the status of a call without the token, which the log tells. */
function callWithoutToken(): Promise<number> {
  const asIs = (bytes: Buffer) => bytes;
  return new Promise((resolve) => {
    caller!.makeUnaryRequest(
      '/switchyard.v1.Inference/DescribeCluster',
      asIs,
      asIs,
      Buffer.alloc(0),
      (error) => resolve(error?.code ?? 0),
    );
  });
}

async function fillLog(callCount: number): Promise<void> {
  for (let calls = 0; calls < callCount; calls += callsAtOnce) {
    const codes = await Promise.all(Array.from({ length: callsAtOnce }, callWithoutToken));
    expect(new Set(codes)).toEqual(new Set([16]));
  }
}

test('a server whose log nobody reads serves on, and later says how many lines it left out', async () => {
  const { stdout } = await startUnread();
  await fillLog(callsToDrop);
  let told = 0;
  for await (const line of createInterface({ input: stdout! })) {
    const said = parseLine(line);
    if (said?.event === 'call-refused') told += 1;
    if (said?.event !== 'log-lines-dropped') continue;
    expect(said.lines).toBe(callsToDrop - told);
    return;
  }
  throw new Error('the log ended without a word');
});

test('a server whose log nobody reads ends in time', async () => {
  const unread = await startUnread();
  await fillLog(callsToStall);
  const started = performance.now();
  unread.kill('SIGTERM');
  expect(await once(unread, 'exit')).toEqual([0, null]);
  expect(performance.now() - started).toBeLessThan(endMsMax(drainMs) + slackMs);
});

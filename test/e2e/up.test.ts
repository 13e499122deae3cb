import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, expect, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import { SwitchyardClient } from '../../services/client/index.js';

const program = commandLine();
let up: ChildProcess | null = null;

afterEach(() => {
  up?.kill('SIGKILL');
});

interface Started {
  address: string;
  pids: number[];
}

/** `switchyard up`, once it says that it is ready. */
async function startUp(args: readonly string[], stderr: 'inherit' | 'pipe' = 'inherit'): Promise<Started> {
  up = spawn(
    process.execPath,
    [program, 'up', '--preset', 'tiny', '--port', '0', '--metrics-port', '0', ...args],
    {
      stdio: ['ignore', 'pipe', stderr],
    },
  );
  return untilReady(up);
}

async function untilReady({ stdout }: ChildProcess): Promise<Started> {
  const pids: number[] = [];
  for await (const line of createInterface({ input: stdout! })) {
    const listed = /^(?:coordinator|worker-\d+|router-\d+) +(\d+) +127/.exec(line);
    if (listed) pids.push(Number(listed[1]));
    const ready = /^ready in .* at (\S+);/.exec(line);
    if (ready) {
      stdout!.resume();
      return { address: ready[1]!, pids };
    }
  }
  throw new Error('up ended before it was ready');
}

const alive = (pid: number) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

function childrenOf(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8');
  return children.trim().split(/\s+/).map(Number);
}

async function untilGone(pids: readonly number[], timeoutMs: number): Promise<number[]> {
  const end = performance.now() + timeoutMs;
  while (pids.some(alive) && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 50));
  return pids.filter(alive);
}

test.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
  'up serves a cluster until %s, then ends all processes and exits with 0',
  async (signal) => {
    const { address, pids } = await startUp(['--workers', '2', '--routers', '1']);
    expect(pids).toHaveLength(4);
    const client = await SwitchyardClient.connect(address);
    const { summary } = await (await client.forward(new Uint8Array(4 * 256 * 2), { sequences: 4 })).collect();
    expect(summary.routers).toHaveLength(2);
    await client.close();
    const exited = once(up!, 'exit');
    up!.kill(signal);
    expect(await exited).toEqual([0, null]);
    expect(await untilGone(pids, 0)).toEqual([]);
  },
);

test('the processes of an up that is killed end by themselves', async () => {
  const { pids } = await startUp(['--workers', '1']);
  up!.kill('SIGKILL');
  expect(await untilGone(pids, 15_000)).toEqual([]);
});

test('an up whose processes stand still ends them, and itself, in time', async () => {
  const { pids } = await startUp(['--workers', '2', '--routers', '1']);
  for (const pid of pids) process.kill(pid, 'SIGSTOP');
  const exited = once(up!, 'exit');
  up!.kill('SIGHUP');
  expect(await exited).toEqual([0, null]);
  expect(await untilGone(pids, 5_000)).toEqual([]);
});

test('a run whose processes stand still ends them, and itself, in time', async () => {
  const args = ['run', '--preset', 'tiny', '--workers', '1', '--sequences', '1', '--length', '8000000'];
  const run = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  up = run;
  for await (const line of createInterface({ input: run.stdout })) if (line.startsWith('ready in')) break;
  const pids = childrenOf(run.pid!);
  expect(pids).toHaveLength(2);
  for (const pid of pids) process.kill(pid, 'SIGSTOP');
  const exited = once(run, 'exit');
  run.kill('SIGTERM');
  expect(await exited).toEqual([1, null]);
  expect(await untilGone(pids, 5_000)).toEqual([]);
});

test('a cluster that logs nothing comes up', async () => {
  await startUp(['--log-level', 'silent', '--workers', '1', '--routers', '1']);
  const exited = once(up!, 'exit');
  up!.kill('SIGTERM');
  expect(await exited).toEqual([0, null]);
});

test('an up goes on without the lines of a log whose disk is full, and says so once', async () => {
  const logs = await mkdtemp(join(tmpdir(), 'switchyard-logs-'));
  await symlink('/dev/full', join(logs, 'worker-0.log'));
  const { address } = await startUp(['--workers', '1', '--log-directory', logs], 'pipe');
  let stderr = '';
  up!.stderr!.on('data', (data) => {
    stderr += data;
  });
  const client = await SwitchyardClient.connect(address);
  await (await client.forward(new Uint8Array(4 * 256 * 2), { sequences: 4 })).collect();
  await client.close();
  const closed = once(up!, 'close');
  up!.kill('SIGTERM');
  expect(await closed).toEqual([0, null]);
  expect(stderr).toMatch(/^switchyard: \S+worker-0.log lacks lines of the log: ENOSPC.*\n$/);
  expect(await readFile(join(logs, 'coordinator.log'), 'utf8')).toContain('batch-complete');
  await rm(logs, { recursive: true });
});

test('an up whose terminal is closed ends with all its processes', async () => {
  // `script` gives it a terminal, which goes with it.
  const args = ['up', '--preset', 'tiny', '--port', '0', '--metrics-port', '0', '--workers', '2'];
  const command = [process.execPath, program, ...args].join(' ');
  const terminal = spawn('script', ['--quiet', '--return', '--command', command, '/dev/null'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  up = terminal;
  const { pids } = await untilReady(terminal);
  const all = [...pids, ...childrenOf(terminal.pid!)];
  terminal.kill('SIGKILL');
  expect(await untilGone(all, 30_000)).toEqual([]);
});

test('up goes on without a worker that died, and ends with an error when the coordinator dies', async () => {
  const { pids } = await startUp(['--workers', '2']);
  const exited = once(up!, 'exit');
  process.kill(pids[1]!, 'SIGKILL');
  await untilGone([pids[1]!], 5_000);
  expect(up!.exitCode).toBeNull();
  process.kill(pids[0]!, 'SIGKILL');
  expect(await exited).toEqual([1, null]);
  expect(await untilGone(pids, 0)).toEqual([]);
});

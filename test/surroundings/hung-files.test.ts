import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { commandLine, packageRoot } from '../../native/locate.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';
import { until } from '../support/until.js';

/** What an end takes at most, `processMs` or that of `forward`, and what a loaded machine may add; without a bound it never comes. */
const endMsMax = 3_000 + 20_000;

const children: ChildProcess[] = [];
let directory: string;
let model: string;
let input: string;
let cluster: TestCluster;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-hung-'));
  model = join(directory, 'hung-model');
  input = join(directory, 'hung-rows.bin');
  await cp(join(packageRoot(), 'test', 'fixtures', 'mixtral'), model, { recursive: true });
  await writeFile(input, testRows(64, 256));
  const source = join(packageRoot(), 'test', 'surroundings', 'hung-read.c');
  execFileSync('gcc', ['-shared', '-fPIC', '-o', join(directory, 'hung.so'), source, '-ldl']);
  cluster = await startCluster({ workers: 1 });
});

afterAll(async () => {
  for (const child of children) child.kill('SIGKILL');
  await rm(directory, { recursive: true });
});

/** Starts a command for which every read of a file hangs; resolves when it has begun one. */
async function startHung(name: string, file: string, args: readonly string[]) {
  const mark = join(directory, `${name}.mark`);
  const program = commandLine();
  const child = spawn(process.execPath, [program, ...args], {
    env: {
      ...process.env,
      XDG_CACHE_HOME: join(directory, 'cache'),
      LD_PRELOAD: join(directory, 'hung.so'),
      HUNG_FILE: file,
      HUNG_MARK: mark,
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  children.push(child);
  const said: string[] = [];
  child.stderr!.on('data', (data) => said.push(String(data)));
  const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  await until(() => existsSync(mark));
  return { child, exited, said };
}

test.each(['coordinator', 'worker'])('a %s ends on a signal while its model cannot be read', async (role) => {
  const ports = ['--port', '0', '--metrics-port', '0'];
  const coordinator = ['coordinator', '--model', model, ...ports];
  const worker = ['worker', '--model', model, '--coordinator', cluster.address, '--name', 'hung', ...ports];
  const weights = join(model, 'model.safetensors');
  const { child, exited } = await startHung(role, weights, role === 'worker' ? worker : coordinator);
  const startedMs = performance.now();
  child.kill('SIGTERM');
  expect((await exited)[0]).toBe(0);
  expect(performance.now() - startedMs).toBeLessThan(endMsMax);
});

const forward = () => ['forward', '--address', cluster.address, '--input', input];

test('forward ends on a signal while its input cannot be read', async () => {
  const { child, exited } = await startHung('signal', input, forward());
  const startedMs = performance.now();
  child.kill('SIGINT');
  expect((await exited)[0]).toBe(1);
  expect(performance.now() - startedMs).toBeLessThan(endMsMax);
});

test('forward ends after its deadline, and says so, while its input cannot be read', async () => {
  const { exited, said } = await startHung('deadline', input, [...forward(), '--deadline', '1']);
  expect((await exited)[0]).toBe(1);
  expect(said.join('')).toContain('switchyard: DEADLINE_EXCEEDED: ');
});

test('run ends after its deadline, with its cluster, and says so, while its input cannot be read', async () => {
  const args = ['run', '--preset', 'tiny', '--workers', '1', '--input', input, '--deadline', '1'];
  const { exited, said } = await startHung('run', input, args);
  expect((await exited)[0]).toBe(1);
  expect(said.join('')).toContain('switchyard: DEADLINE_EXCEEDED: ');
});

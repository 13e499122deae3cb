import { execFileSync, spawn } from 'node:child_process';
import { lstatSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

const hidden = 256;
const tokens = 2_000;
const directory = mkdtempSync(join(tmpdir(), 'switchyard-outputs-'));
const at = (name: string) => join(directory, name);
const program = commandLine();

let cluster: TestCluster;
let expected: Buffer;

beforeAll(async () => {
  cluster = await startCluster({ workers: 1, routers: 1 });
  const rows = testRows(tokens, hidden);
  writeFileSync(at('rows.bin'), rows);
  const call = await cluster.client.forward(rows, { sequences: 4, feedback: false });
  expected = Buffer.from((await call.collect()).rows);
});
afterAll(() => rmSync(directory, { recursive: true }));

interface Ending {
  status: number | null;
  stderr: string;
}

/** A shell runs `forward` of the same rows, in small chunks, with what follows on the command line. */
function forward(rest: string): Promise<Ending> {
  const batch = `--sequences 4 --chunk-tokens 64 --no-feedback --input rows.bin`;
  const line = `"$0" "$1" forward --address ${cluster.address} ${batch} ${rest}`;
  const child = spawn('bash', ['-o', 'pipefail', '-c', line, process.execPath, program], {
    cwd: directory,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  child.stderr.on('data', (data) => {
    stderr += data;
  });
  return new Promise((resolve) => child.once('close', (status) => resolve({ status, stderr })));
}

describe('the answers of `forward`', () => {
  test.each([
    '--output - > out',
    '--output /dev/stdout > out',
    '--output - | cat > out',
    '--output /dev/stdout | cat > out',
  ])('are alone on standard output, in order: %s', async (rest) => {
    const { status, stderr } = await forward(rest);
    expect(stderr).toMatch(/^tokens +2,000 in /);
    expect(status).toBe(0);
    expect(readFileSync(at('out')).equals(expected)).toBe(true);
    expect(lstatSync('/dev/stdout').isSymbolicLink()).toBe(true);
  });

  test('go through a pipe in order', async () => {
    execFileSync('mkfifo', [at('pipe')]);
    const { status } = await forward('--output pipe > /dev/null & cat pipe > piped; wait $!');
    expect(status).toBe(0);
    expect(readFileSync(at('piped')).equals(expected)).toBe(true);
  });

  test('go where a symbolic link leads, into a file that keeps its mode', async () => {
    writeFileSync(at('real.bin'), 'old', { mode: 0o640 });
    symlinkSync('real.bin', at('link.bin'));
    expect((await forward('--output link.bin')).status).toBe(0);
    expect(readFileSync(at('real.bin')).equals(expected)).toBe(true);
    expect(statSync(at('real.bin')).mode & 0o7777).toBe(0o640);
    expect(lstatSync(at('link.bin')).isSymbolicLink()).toBe(true);
  });

  test('and the choice of experts need files of their own', async () => {
    const { status, stderr } = await forward('--output same --return-routing ./same');
    expect(stderr).toBe(
      'switchyard: INVALID_ARGUMENT: returnRouting is "./same"; allowed: another file than that of output\n',
    );
    expect(status).toBe(2);
  });
});

test('a trace into a pipe that nobody reads is refused, and holds nothing up', async () => {
  execFileSync('mkfifo', [at('trace')]);
  const { status, stderr } = await switchyard(['router', '--trace', at('trace')]);
  expect(stderr).toMatch(/^switchyard: CONFIG_INVALID: trace is ".*trace", which cannot be written: ENXIO/);
  expect(status).toBe(2);
});

describe('the choice of experts', () => {
  test('can be all that is on standard output', async () => {
    const { status, stderr } = await forward('--return-routing - > routing.jsonl');
    expect(stderr).toMatch(/^tokens /);
    expect(status).toBe(0);
    const lines = readFileSync(at('routing.jsonl'), 'utf8').trimEnd().split('\n');
    const parsed = lines.map((line) => JSON.parse(line) as { experts: unknown[] });
    expect(parsed.reduce((sum, { experts }) => sum + experts.length, 0)).toBe(tokens);
  });

  test('of a batch that fails leaves an older file as it was', async () => {
    writeFileSync(at('old.jsonl'), 'old\n');
    const { status } = await forward('--return-routing old.jsonl --output out --layers 7');
    expect(status).toBe(2);
    expect(readFileSync(at('old.jsonl'), 'utf8')).toBe('old\n');
  });
});

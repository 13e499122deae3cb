import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import { until } from '../support/until.js';

const directory = mkdtempSync(join(tmpdir(), 'switchyard-peers-'));
const pidFile = join(directory, 'pids');

/** Answers every question at once, as long as there are any. */
function writePeer(path: string): void {
  const script = `#!/bin/sh\necho $$ >> ${pidFile}\necho ready\nwhile read -r question; do echo 1; done\n`;
  writeFileSync(path, script, { mode: 0o755 });
}

/** Of the peers, in the order of their start. */
function pids(): number[] {
  try {
    return readFileSync(pidFile, 'utf8').trim().split('\n').map(Number);
  } catch {
    return [];
  }
}

function runs(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

test('a benchmark whose peer dies names it, and ends with the others', async () => {
  try {
    mkdirSync(join(directory, 'bin'));
    writePeer(join(directory, 'experts_peer'));
    writePeer(join(directory, 'bin', 'python'));
    const env = { ...process.env, SWITCHYARD_BENCH_PROGRAMS: directory, SWITCHYARD_PEERS: directory };
    const bench = [commandLine(), 'bench', 'experts/1024x2816-swiglu'];
    const run = promisify(execFile)(process.execPath, bench, { env, timeout: 120_000 });
    const ended = run.catch((error) => error);
    const [limits, ...others] = await until(pids, (found) => found.length === 3);
    process.kill(limits!, 'SIGKILL');
    expect(await ended).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/experts_peer gave no figure for "\w+": it ended with SIGKILL/),
    });
    await until(() => !others.some(runs));
  } finally {
    rmSync(directory, { recursive: true });
  }
});

import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import { switchyard } from '../support/cli.js';

test('the demo streams a skewed batch through a cluster of processes, verifies it and reports', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'switchyard-demo-'));
  try {
    const path = join(directory, 'report.json');
    const { status, stdout, stderr } = await switchyard([
      'demo',
      '--preset',
      'tiny',
      '--workers',
      '3',
      '--json',
      path,
    ]);
    expect(stderr).toBe('');
    expect(status).toBe(0);
    expect(stdout).toMatch(/metrics while it runs: http:\/\/127\.0\.0\.1:\d+\/metrics/);
    expect(stdout).toMatch(/^verified +yes: relative error/m);

    const report = JSON.parse(await readFile(path, 'utf8'));
    const tokens = 8 * 256;
    const pairs = tokens * 2 * 2;
    expect(report).toMatchObject({ verified: true, tokens, messages: { ungrouped: pairs } });
    expect(report.relativeError).toBeGreaterThan(0);
    expect(report.relativeError).toBeLessThan(1e-2);
    expect(report.tokensPerSecond).toBeCloseTo(tokens / report.seconds);
    // 8 chunks of 256 tokens through 2 layers to 3 workers: far fewer messages than pairs, at most one each.
    expect(report.messages.sent).toBeLessThanOrEqual(8 * 2 * 3);
    expect(report.messages.sent).toBeGreaterThanOrEqual(8 * 2);
    expect(report.bytes.withoutDedup).toBe(pairs * 256 * 2);
    expect(report.bytes.sent).toBeLessThan(report.bytes.withoutDedup);
    expect(report.balancedness.first).toBeGreaterThan(0);
    expect(report.balancedness.last).toBeLessThanOrEqual(1);
    expectProcesses(report.processes);
  } finally {
    await rm(directory, { recursive: true });
  }
});

function expectProcesses(
  processes: { role: string; pid: number; peakRssBytes: number; eventLoopUtilization: number }[],
): void {
  const roles = processes.map(({ role }) => role).sort();
  expect(roles).toEqual(['client', 'coordinator', 'worker', 'worker', 'worker']);
  expect(new Set(processes.map(({ pid }) => pid)).size).toBe(5);
  for (const { pid, peakRssBytes, eventLoopUtilization } of processes) {
    expect(peakRssBytes).toBeGreaterThan(10 * 1024 * 1024);
    expect(eventLoopUtilization).toBeGreaterThan(0);
    expect(eventLoopUtilization).toBeLessThanOrEqual(1);
    // The command waits for its processes.
    expect(() => process.kill(pid, 0)).toThrow('ESRCH');
  }
}

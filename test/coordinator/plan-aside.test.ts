import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { describe, expect, test } from '@jest/globals';

async function run(memoryBytes: number): Promise<Record<string, unknown>> {
  const args = ['test/coordinator/plan-aside.mjs', String(memoryBytes)];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  return JSON.parse(stdout) as Record<string, unknown>;
}

describe('planning in a thread of its own', () => {
  test('gives the same plan, and the event loop goes on meanwhile', async () => {
    const { turns, ...rest } = await run(32_000);
    // As long as it is made it is work that must get on.
    const underWay = '1 under way, the oldest of 1024 experts on 64 workers';
    expect(rest).toEqual({ same: true, underWay, done: 1, left: null });
    expect(turns).toBeGreaterThan(2);
  });

  test('fails with the error of the planner', async () => {
    expect(await run(1_000)).toMatchObject({
      known: true,
      code: 'RESOURCE_EXHAUSTED',
      details: { value: 1_024_000, allowed: 64_000 },
    });
  });
});

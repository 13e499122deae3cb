import { expect, test } from '@jest/globals';
import { sleep } from '../../services/common/lifecycle.js';
import { connect, Service } from '../support/services.js';
import { until } from '../support/until.js';

const leaseMs = 4_000;
/** With a second between heartbeats the others hear nothing for up to 4.3 s. */
const standMs = 3_300;
/** What tells that somebody took a process for lost. */
const losses =
  /"event":"(node-dead|node-refused|not-ready|link-lost|link-failed|coordinator-lost|membership-over)"/;

test('a process that stands still for less than the lease loses nothing, whatever its role', async () => {
  const head = new Service('coordinator', { preset: 'tiny', workers: 1, router: false, leaseMs });
  const coordinator = await head.address;
  const worker = new Service('worker', { coordinator, name: 'worker-a', leaseMs });
  const router = new Service('router', { coordinator, name: 'router-a', leaseMs });
  const all = [head, worker, router];
  await until(async () => (await router.readiness()).ready);
  const client = await connect(await router.address);
  const { hidden } = await client.describeModel();
  const rows = new Uint8Array(256 * hidden * 2).fill(0x3f);

  for (const stopped of all) {
    stopped.process.kill('SIGSTOP');
    await sleep(standMs);
    stopped.process.kill('SIGCONT');
    const { summary } = await (await client.forward(rows)).collect();
    expect(summary.tokens).toBe(256);
    // As long as it takes until whoever heard nothing would have said so.
    await sleep(leaseMs / 2);
    expect(all.flatMap(({ lines }) => lines.filter((line) => losses.test(line)))).toEqual([]);
  }
});

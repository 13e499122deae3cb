import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import { prepareProcess } from '../../services/common/process.js';
import { creditCost } from '../../services/transport/limits.js';
import { collectGarbage } from '../support/garbage.js';
import { until } from '../support/until.js';
import { batchBytes, creditBytes, dialProcess, forkWorker, hidden, large, rowCount } from './processes.js';
import { metaOf, never, transports, useTransport } from './support.js';

prepareProcess();

/** A link's own: what its silence would take to be noticed. */
const leaseMs = 30_000;

describe.each(transports)('over %s a worker process', (transport) => {
  useTransport(transport);

  test('that is killed ends all exchanges at once, by name', async () => {
    const { worker, address } = await forkWorker();
    const link = await dialProcess(address);
    (await link.exchange(large(), never)).rows.release();
    // A stopped process answers nothing, so that these are outstanding for certain.
    worker.kill('SIGSTOP');
    const batches = Array.from({ length: 8 }, large);
    const ends = batches.map((batch) => link.exchange(batch, never).catch((error: SwitchyardError) => error));
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(link.stats.bytesOutstanding).toBe(8 * creditCost(metaOf({ rowCount, hidden })));
    const killed = performance.now();
    worker.kill('SIGKILL');
    for (const end of await Promise.all(ends)) {
      expect(end).toMatchObject({ code: 'LINK_LOST', details: { worker: 'bench' } });
    }
    expect(performance.now() - killed).toBeLessThan(leaseMs / 2);
    await link.closed;
    expect(batches.every(({ rows }) => rows.released)).toBe(true);
    expect(link.stats.bytesOutstanding).toBe(0);
    await until(() => {
      collectGarbage();
      return native.arenaStats().slabs === 0;
    });
    expect(performance.now() - killed).toBeLessThan(leaseMs / 2);
  });

  test('that stands still holds up its link, and bounds what the router holds for it', async () => {
    const { worker, address } = await forkWorker();
    const link = await dialProcess(address);
    (await link.exchange(large(), never)).rows.release();
    worker.kill('SIGSTOP');
    const before = process.memoryUsage();
    const cost = creditCost(metaOf({ rowCount, hidden }));
    const creditBatches = Math.floor(creditBytes / cost);
    const ends = Array.from({ length: creditBatches }, () => link.exchange(large(), never));
    // Beyond the credits: a caller waits here with rows that are its own.
    const waiting = Array.from({ length: 8 }, () => link.exchange(large(), never));
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    expect(link.stats.bytesOutstanding).toBe(creditBatches * cost);
    // grpc-js holds copies of the message on its way and of the one behind it, and the kernel what its buffers take.
    const grown = process.memoryUsage().arrayBuffers - before.arrayBuffers;
    expect(grown).toBeLessThan(8 * batchBytes);
    // Over UCX nothing is copied: what was sent lies in the slabs of its sender, within the credits.
    if (transport === 'grpc') expect(link.stats.messagesSent).toBeLessThan(1 + creditBatches);
    worker.kill('SIGCONT');
    for (const { rows } of await Promise.all([...ends, ...waiting])) rows.release();
    expect(link.stats).toMatchObject({ bytesOutstanding: 0, answersDiscarded: 0 });
  });

  test('answers thousands of exchanges without a growing pile of anything', async () => {
    const { address } = await forkWorker();
    const link = await dialProcess(address);
    const small = () => {
      const meta = metaOf({ rowCount: 16, hidden });
      return { meta, rows: native.allocateSlab(16 * hidden * 2, 1024) };
    };
    let slabsMax = 0;
    for (let round = 0; round < 20; round++) {
      const results = await Promise.all(Array.from({ length: 100 }, () => link.exchange(small(), never)));
      for (const { rows } of results) rows.release();
      slabsMax = Math.max(slabsMax, native.arenaStats().bytesInUse);
    }
    await until(() => link.stats.bytesOutstanding === 0);
    // Views of sent slabs wait for a collection; they must not pile up to what was sent, 65 MB.
    expect(slabsMax).toBeLessThan(40e6);
    expect(link.stats).toMatchObject({ messagesSent: 2000, messagesReceived: 2000, answersDiscarded: 0 });
  });
});

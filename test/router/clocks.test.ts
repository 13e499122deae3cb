import { afterEach, expect, test } from '@jest/globals';
import { WorkerProcess } from '../support/worker-process.js';
import { forward, overEachTransport, startCluster, tokens } from './cluster.js';

const processes: WorkerProcess[] = [];

afterEach(async () => {
  await Promise.all(processes.splice(0).map((process) => process.kill()));
});

overEachTransport((transport) => {
  test.each([
    ['a minute ahead', '60_000'],
    ['a minute behind', '-60_000'],
    ['jumping by days', '(Math.random() - 0.5) * 1e9'],
  ])('batches with a deadline complete on a worker whose wall clock is %s', async (_, shift) => {
    const clock = `const now = Date.now; Date.now = () => now() + Math.round(${shift});`;
    const worker = new WorkerProcess(['--import', `data:text/javascript,${encodeURIComponent(clock)}`]);
    processes.push(worker);
    const { coordinator, routers } = await startCluster({ workers: 0, coordinator: { workers: 1 } });
    const quiet = { port: 0, metricsPort: 0, logLevel: 'silent', threads: 1, transport };
    await worker.start({ ...quiet, name: 'worker-0', coordinator: coordinator.address });
    const rows = await tokens(500);
    const options = { feedback: 'OFF' } as const;
    const free = await forward(routers[0]!, rows, { options });
    const bound = await forward(routers[0]!, rows, { options, deadlineMs: 30_000 });
    expect(Buffer.compare(bound.rows, free.rows)).toBe(0);
    // A deadline that passes in the queue is still one.
    await expect(forward(routers[0]!, rows, { options, deadlineMs: 1 })).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
    });
    await worker.stop();
  });
});

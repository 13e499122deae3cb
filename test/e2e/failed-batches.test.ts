import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { LocalProcess } from '../../services/cli/local-process.js';
import type { ForwardHeaderInput } from '../../services/common/generated/switchyard/v1/ForwardHeader.js';
import { connect } from '../../services/common/grpc-channel.js';
import { clients } from '../../services/common/protocol.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { header, rawForward } from '../support/raw-forward.js';
import { until } from '../support/until.js';

const right = { sequences: 1, length: 4, hidden: 256, dtype: 'BF16' } as const;

/** Waits for the `batch-failed` line of the batch of which `pick` is true. */
async function failed(lines: readonly string[], pick: (line: { code: string; reason: string }) => boolean) {
  const found = await until(
    async () =>
      lines
        .map((line) => JSON.parse(line.slice(line.indexOf('{'))))
        .find((line) => line.event === 'batch-failed' && pick(line)),
    (line) => line !== undefined,
  );
  return found.batch;
}

describe('the line batch-failed has what the client calls the batch', () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await startCluster({ workers: 1 });
  });

  test.each<[string, ForwardHeaderInput, string]>([
    ['hidden is 255', { hidden: 255 }, 'by-hidden'],
    ['last_layer is 9', { lastLayer: 9 }, 'by-layer'],
    ['options.chunk_tokens is 99999999', { options: { chunkTokens: 99_999_999 } }, 'by-chunk'],
  ])('when it is refused at its header: %s', async (reason, wrong, batchId) => {
    await rawForward(cluster.address, [header({ ...right, ...wrong, batchId })]);
    expect(await failed(cluster.lines, (line) => line.reason.startsWith(reason))).toBe(batchId);
  });

  test('when it is one of a session', async () => {
    const client = connect(clients.Inference, cluster.address, { token: null, messageBytesMax: 2 ** 20 });
    const session = client.session();
    session.on('error', () => {});
    session.write({ hello: {} });
    session.write({ batch: { number: 1, header: { ...right, length: 4_000, batchId: 'in-a-session' } } });
    expect(await failed(cluster.lines, ({ reason }) => reason.startsWith('sequences x length is'))).toBe(
      'in-a-session',
    );
    session.cancel();
    client.close();
  });

  test('unless it may not be called so', async () => {
    const batchId = `a\n\u001b[2J${'b'.repeat(5_000)}`;
    await rawForward(cluster.address, [header({ ...right, batchId })]);
    expect(await failed(cluster.lines, ({ reason }) => reason.startsWith('batch_id is'))).toBe('');
    expect(cluster.lines.find((line) => line.includes('batch_id is'))!.length).toBeLessThan(2_000);
  });
});

describe('while the router waits for the model', () => {
  const lines: string[] = [];
  // Nobody listens there.
  const flags = { name: 'alone', port: 0, metricsPort: 0, coordinator: '127.0.0.1:1', readyWaitMs: 600_000 };
  const router = new LocalProcess('router', 'alone', flags, {}, (_, line) => lines.push(line));
  afterAll(async () => {
    router.kill('SIGTERM');
    await router.exited;
  });

  test('a deadline that passes is told with the id too', async () => {
    const { address } = await router.listening;
    await rawForward(address, [header({ ...right, batchId: 'late', deadlineMs: 50 })]);
    expect(await failed(lines, ({ code }) => code === 'DEADLINE_EXCEEDED')).toBe('late');
  });
});

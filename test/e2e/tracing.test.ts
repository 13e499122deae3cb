import { randomBytes } from 'node:crypto';
import { Metadata } from '@grpc/grpc-js';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { connect } from '../../services/common/grpc-channel.js';
import { clients } from '../../services/common/protocol.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { OtlpReceiver, type ReceivedSpan } from '../support/otlp-receiver.js';
import { testRows } from '../support/rows.js';
import { until } from '../support/until.js';

/** The preset `tiny`. */
const hidden = 256;
const layers = [0, 1];
const experts = 8;
const topK = 2;
const tokens = 400;
const chunkTokens = 100;
const chunks = tokens / chunkTokens;

let receiver: OtlpReceiver;
let cluster: TestCluster;

/** Nothing is sampled but what clients want to have. */
beforeAll(async () => {
  receiver = await OtlpReceiver.start();
  const tracing = { otlpEndpoint: receiver.endpoint, traceSampling: 0 };
  cluster = await startCluster({ workers: 2, coordinator: tracing, worker: tracing });
});

afterAll(() => receiver.close());

function newTraceparent(sampled: boolean) {
  const trace = randomBytes(16).toString('hex');
  const span = randomBytes(8).toString('hex');
  return { trace, span, traceparent: `00-${trace}-${span}-0${sampled ? 1 : 0}` };
}

/** The spans of a trace, once their number stays as it is to be. */
async function spansOf(trace: string, count: number): Promise<ReceivedSpan[]> {
  return until(
    () => receiver.spans.filter(({ traceId }) => traceId === trace),
    (spans) => spans.length === count,
  );
}

const forward = (traceparent?: string) =>
  cluster.client
    .forward(testRows(tokens, hidden), {
      sequences: 4,
      chunkTokens,
      deadlineMs: 60_000,
      ...(traceparent && { traceparent }),
    })
    .then((call) => call.collect());

test('a batch is traced from the client down to each expert, across router and workers', async () => {
  const { trace, span, traceparent } = newTraceparent(true);
  await forward(traceparent);
  const passes = chunks * layers.length;
  // A batch, its chunks, each with its layers, each with its route, its combine, an exchange with both workers, and a compute of each expert.
  const spans = await spansOf(trace, 1 + chunks + passes * (1 + 1 + 1 + 2 + experts));
  const byId = new Map(spans.map((one) => [one.spanId, one]));
  const named = (name: string) => spans.filter((one) => one.name === name);
  const parents: Record<string, string> = {
    chunk: 'batch',
    layer: 'chunk',
    route: 'layer',
    exchange: 'layer',
    combine: 'layer',
    compute: 'exchange',
  };
  const [batch] = named('batch');
  expect(batch).toMatchObject({ parentSpanId: span, process: 'coordinator', error: '' });
  expect(batch!.attributes['switchyard.tokens']).toBe(tokens);
  for (const one of spans.filter(({ name }) => name !== 'batch')) {
    const parent = byId.get(one.parentSpanId)!;
    expect([one.name, parent.name]).toEqual([one.name, parents[one.name]]);
    expect(one.end).toBeGreaterThanOrEqual(one.start);
  }
  const computed = named('compute');
  expect(new Set(computed.map(({ process }) => process))).toEqual(new Set(['worker-0', 'worker-1']));
  for (const layer of layers) {
    const rows = computed
      .filter(({ attributes }) => attributes['switchyard.layer'] === layer)
      .reduce((sum, { attributes }) => sum + Number(attributes['switchyard.rows']), 0);
    expect(rows).toBe(tokens * topK);
  }
  const line = cluster.lines.find((text) => text.includes('batch-complete') && text.includes(trace));
  expect(line).toBeDefined();
});

test('a batch of a session, and one whose call has it in its metadata, have the trace of their client', async () => {
  const small = newTraceparent(true);
  const session = await cluster.client.session();
  await session.forward(testRows(8, hidden), { traceparent: small.traceparent });
  await session.close();
  const spans = await until(
    () => receiver.spans.filter(({ traceId }) => traceId === small.trace),
    (found) => found.some(({ name }) => name === 'batch') && found.some(({ name }) => name === 'compute'),
  );
  expect(spans.find(({ name }) => name === 'batch')!.parentSpanId).toBe(small.span);

  const raw = newTraceparent(true);
  const inference = connect(clients.Inference, cluster.address, { token: null, messageBytesMax: 2 ** 24 });
  const metadata = new Metadata();
  metadata.set('traceparent', raw.traceparent);
  const call = inference.forward(metadata);
  call.write({ header: { sequences: 1, length: 4, hidden, dtype: 'BF16' } });
  call.write({ chunk: { offset: 0, rows: Buffer.from(testRows(4, hidden)) } });
  call.end();
  for await (const _ of call);
  inference.close();
  const [batch] = await until(
    () => receiver.spans.filter(({ traceId, name }) => traceId === raw.trace && name === 'batch'),
    (found) => found.length === 1,
  );
  expect(batch!.parentSpanId).toBe(raw.span);
});

test('what ends a batch is told of its span; a client that does not sample is not traced', async () => {
  const failing = newTraceparent(true);
  const unsampled = newTraceparent(false);
  await forward(unsampled.traceparent);
  await forward();
  const given = () => ({
    experts: new Uint32Array(chunkTokens * layers.length * topK).fill(99),
    weights: new Float32Array(chunkTokens * layers.length * topK),
  });
  const call = await cluster.client.forward(testRows(tokens, hidden), {
    sequences: 4,
    chunkTokens,
    given: (_first, count) => {
      const { experts, weights } = given();
      const length = count * layers.length * topK;
      return { experts: experts.subarray(0, length), weights: weights.subarray(0, length) };
    },
    traceparent: failing.traceparent,
  });
  await expect(call.collect()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  const [batch] = await until(
    () => receiver.spans.filter(({ traceId, name }) => traceId === failing.trace && name === 'batch'),
    (found) => found.length === 1,
  );
  expect(batch!.attributes['error.type']).toBe('INVALID_ARGUMENT');
  expect(receiver.spans.filter(({ traceId }) => traceId === unsampled.trace)).toEqual([]);
});

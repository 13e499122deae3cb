import { afterEach, expect, test } from '@jest/globals';
import { SwitchyardClient } from '../../services/client/index.js';
import { decodeBf16 } from '../../services/model/bf16.js';
import { relativeErrors } from '../../services/model/reference.js';
import { overEachTransport, startCluster } from '../router/cluster.js';
import { ask, infer, openInferenceOf } from '../router/open-inference-support.js';
import { until } from '../support/until.js';
import { tokenIdsFixture } from './token-ids-fixture.js';

const { expected, tokenIds, tokens, hidden, checkpoint } = await tokenIdsFixture('ernie4_5_vl_moe');
/** The experts of images are 8 to 15. */
const ofImages = new Set([2, 4, 7, 9, 12, 15]);

const clients: SwitchyardClient[] = [];
afterEach(() => {
  for (const client of clients.splice(0)) client.destroy();
});

/** The bare block of a layer. */
const block = (layer: number) =>
  ({ layers: { first: layer, last: layer }, norm: false, residual: false, feedback: false }) as const;

/** As transformers computes it, in the precision that BF16 rows allow. */
function expectRows(rows: Uint8Array, name: string): void {
  const { relativeError } = relativeErrors(decodeBf16(rows), expected.floats(name), hidden);
  expect(relativeError).toBeLessThan(8e-3);
}

overEachTransport((transport) => {
  async function connected(): Promise<SwitchyardClient> {
    const cluster = await startCluster({ routers: 2, workers: 2, coordinator: checkpoint });
    const client = await SwitchyardClient.connect(cluster.routers[0]!.address, { transport });
    clients.push(client);
    await client.waitUntilReady(30_000, 2);
    return client;
  }

  test('tokens of text and of images go to experts of their own, and without ids all to those of text', async () => {
    const client = await connected();
    await using session = client.session();
    for (const layer of [1, 2]) {
      const [typed, untyped] = [`moe.${layer}`, `untyped.${layer}`];
      const streamed = await client.forward(expected.bytes, { ...block(layer), tokenIds });
      expectRows((await streamed.collect()).rows, typed);
      expectRows((await (await client.forward(expected.bytes, block(layer))).collect()).rows, untyped);
      const options = { ...block(layer), returnRouting: true };
      const mixed = await session.forward(expected.bytes, { ...options, tokenIds });
      expectRows(mixed.rows, typed);
      const isOfImages = [...mixed.routing!.experts].map((expert) => expert >= 8);
      expect(isOfImages).toEqual([...tokenIds].flatMap((id) => [ofImages.has(id), ofImages.has(id)]));
      expectRows((await session.forward(expected.bytes, options)).rows, untyped);
      const given = await session.forward(expected.bytes, { ...block(layer), given: mixed.routing! });
      expect(Buffer.compare(given.rows, mixed.rows)).toBe(0);
    }
    const whole = await client.forward(expected.bytes, { tokenIds, feedback: false });
    expectRows((await whole.collect()).rows, 'stack');
  });

  test('every token has its own id, however the batch is cut and shared out', async () => {
    const client = await connected();
    const times = 100;
    const rows = Buffer.concat(new Array(times).fill(expected.bytes));
    const ids = Uint32Array.from({ length: tokens * times }, (_, token) => tokenIds[token % tokens]!);
    const options = { feedback: false, tokenIds: ids, sequences: tokens, chunkTokens: 100 };
    const answer = await (await client.forward(rows, options)).collect();
    const once = await (await client.forward(expected.bytes, { feedback: false, tokenIds })).collect();
    expect(Buffer.compare(answer.rows, Buffer.concat(new Array(times).fill(once.rows)))).toBe(0);
  });
});

test('the Open Inference Protocol takes ids of tokens, and does not need them', async () => {
  const { routers } = await startCluster({ coordinator: checkpoint });
  const client = openInferenceOf(routers[0]!);
  await until(async () => (await ask<{ ready: boolean }>(client, 'ServerReady')).ready);
  const name = 'ernie4_5_vl_moe.moe.1';
  const told = { name: 'token_ids', datatype: 'INT64', shape: [-1] };
  expect((await ask<{ inputs: object[] }>(client, 'ModelMetadata', { name })).inputs[1]).toEqual(told);
  const { config } = await ask<{ config: { input: object[] } }>(client, 'ModelConfig', { name });
  expect(config.input).toMatchObject([
    { name: 'hidden_states', optional: false },
    { name: 'token_ids', optional: true },
  ]);

  const rows = { name: 'hidden_states', datatype: 'BF16', shape: [tokens, hidden] };
  const ids = { name: 'token_ids', datatype: 'INT64', shape: [tokens] };
  const bytes = Buffer.from(expected.bytes);
  const raw = Buffer.from(BigInt64Array.from(tokenIds, BigInt).buffer);
  const run = (inputs: object[], ...rawInputContents: Buffer[]) =>
    infer(client, { modelName: name, inputs, rawInputContents });
  expectRows((await run([rows, ids], bytes, raw)).rawOutputContents[0]!, 'moe.1');
  expectRows((await run([rows], bytes)).rawOutputContents[0]!, 'untyped.1');
  const routing = [
    { name: 'topk_ids', datatype: 'INT32', shape: [tokens, 2] },
    { name: 'topk_weights', datatype: 'FP32', shape: [tokens, 2] },
  ];
  const given = Buffer.alloc(tokens * 2 * 4);
  await expect(run([rows, ids, ...routing], bytes, raw, given, given)).rejects.toThrow(
    /inputs is "token_ids and topk_ids"; allowed: one of the two/,
  );
});

import { afterEach, expect, test } from '@jest/globals';
import type { ForwardOptions } from '../../services/client/client.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { decodeBf16 } from '../../services/model/bf16.js';
import { relativeErrors } from '../../services/model/reference.js';
import { overEachTransport, startCluster } from '../router/cluster.js';
import { ask, infer, openInferenceOf } from '../router/open-inference-support.js';
import { until } from '../support/until.js';
import { tokenIdsFixture } from './token-ids-fixture.js';

const { expected, tokenIds, tokens, hidden, checkpoint } = await tokenIdsFixture('deepseek_v4-hash');

/** Float32 that BF16 holds, as BF16. */
const narrowed = (rows: Buffer) =>
  Buffer.from(Uint16Array.from(new Uint32Array(new Uint8Array(rows).buffer), (bits) => bits >>> 16).buffer);

const clients: SwitchyardClient[] = [];
afterEach(() => {
  for (const client of clients.splice(0)) client.destroy();
});

/** The bare block of a layer. */
const block = (layer: number) =>
  ({ layers: { first: layer, last: layer }, norm: false, residual: false, feedback: false }) as const;

/** As transformers computes it, in the precision that BF16 rows allow. */
function expectBlock(rows: Uint8Array, layer: number): void {
  const { relativeError } = relativeErrors(decodeBf16(rows), expected.floats(`moe.${layer}`), hidden);
  expect(relativeError).toBeLessThan(8e-3);
}

overEachTransport((transport) => {
  async function connected(routers: number): Promise<SwitchyardClient> {
    const cluster = await startCluster({ routers, coordinator: checkpoint });
    const client = await SwitchyardClient.connect(cluster.routers[0]!.address, { transport });
    clients.push(client);
    await client.waitUntilReady(30_000, routers);
    return client;
  }

  test('layers whose experts the ids of tokens choose compute as transformers does', async () => {
    const client = await connected(2);
    await using session = client.session();
    for (const layer of [0, 1, 2]) {
      const options = { ...block(layer), ...(layer < 2 && { tokenIds }) };
      expectBlock((await (await client.forward(expected.bytes, options)).collect()).rows, layer);
      const result = await session.forward(expected.bytes, { ...options, returnRouting: true });
      expectBlock(result.rows, layer);
      const given = await session.forward(expected.bytes.subarray(0, hidden * 2), {
        ...block(layer),
        given: { experts: Uint32Array.of(0, 1), weights: Float32Array.of(1, 1) },
      });
      expect(given.summary.tokens).toBe(1);
    }
  });

  test('every token has its own id, however the batch is cut and shared out', async () => {
    const client = await connected(2);
    const times = 300;
    const rows = Buffer.concat(new Array(times).fill(expected.bytes));
    const ids = Uint32Array.from({ length: tokens * times }, (_, token) => tokenIds[token % tokens]!);
    const options = { ...block(1), tokenIds: ids, returnRouting: true };
    const single = await client.forward(expected.bytes, { ...options, tokenIds });
    const chosen: number[] = [];
    for await (const { routing } of single) chosen.push(...routing!.experts);
    const asStream = async function* () {
      for (let at = 0; at < rows.byteLength; at += 100_001) yield rows.subarray(at, at + 100_001);
    };
    const whole = { ...options, sequences: times, length: tokens };
    const calls = [
      client.forward(rows, whole),
      client.forward(rows, { ...whole, chunkTokens: 100 }),
      client.forward(asStream(), whole),
      client.forward(rows, { ...whole, tokenIds: async (first, count) => ids.slice(first, first + count) }),
    ];
    for (const call of await Promise.all(calls)) {
      let answered = 0;
      for await (const { first, count, routing } of call) {
        answered += count;
        const experts = Array.from(
          { length: count * 2 },
          (_, at) => chosen[(first * 2 + at) % (tokens * 2)]!,
        );
        expect([...routing!.experts]).toEqual(experts);
      }
      expect(answered).toBe(tokens * times);
    }
  });

  test('what ids of tokens chose can be given, also an expert that a token has twice', async () => {
    const client = await connected(1);
    await using session = client.session();
    for (const combine of ['exact', 'partial'] as const) {
      const options = { ...block(0), combine };
      const first = await session.forward(expected.bytes, { ...options, tokenIds, returnRouting: true });
      const { experts } = first.routing!;
      expect(experts[0]).toBe(experts[1]);
      const again = await session.forward(expected.bytes, { ...options, given: first.routing! });
      expect(Buffer.compare(again.rows, first.rows)).toBe(0);
      expectBlock(again.rows, 0);
    }
  });

  test('ids that are missing, or of no layer, end the batch by name', async () => {
    const client = await connected(1);
    const failure = async (options: ForwardOptions) => {
      const call = await client.forward(expected.bytes, options);
      return call.collect().then(
        () => null,
        (error) => error,
      );
    };
    expect(await failure(block(0))).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('chunk.token_ids at offset 0 is "0 bytes"'),
    });
    expect(await failure({ ...block(2), tokenIds })).toMatchObject({
      message: expect.stringContaining('no layer of the batch chooses experts by them'),
    });
    const beyond = tokenIds.map((id, token) => (token === 9 ? 16 : id));
    expect(await failure({ ...block(0), tokenIds: beyond })).toMatchObject({
      message: expect.stringContaining('chunk.token_ids of token 9 is 16; allowed: 0 to 15'),
    });
    const options = { ...block(0), tokenIds: tokenIds.subarray(1) };
    await expect(client.forward(expected.bytes, options)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('tokenIds.length is 31; allowed: 32, the tokens of the batch'),
    });
    expect(await failure({ ...block(0), tokenIds: (_, count) => new Uint32Array(count - 1) })).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('what tokenIds gave at token 0 is "31 ids"'),
    });
    const own = new Error('no ids');
    const throws = () => {
      throw own;
    };
    expect(await failure({ ...block(0), tokenIds: throws })).toBe(own);
    expectBlock((await (await client.forward(expected.bytes, { ...block(0), tokenIds })).collect()).rows, 0);
  });
});

test('the Open Inference Protocol takes ids of tokens where layers choose experts by them', async () => {
  const { routers } = await startCluster({ coordinator: checkpoint });
  const client = openInferenceOf(routers[0]!);
  await until(async () => (await ask<{ ready: boolean }>(client, 'ServerReady')).ready);
  const modelName = 'deepseek_v4-hash.moe.0';
  const metadata = (name: string) =>
    ask<{ inputs: { name: string; datatype: string; shape: number[] }[]; outputs: { name: string }[] }>(
      client,
      'ModelMetadata',
      { name },
    );
  const { inputs, outputs } = await metadata(modelName);
  expect(inputs[1]).toEqual({ name: 'token_ids', datatype: 'INT64', shape: [-1] });
  expect(outputs.map(({ name }) => name)).toEqual(['hidden_states', 'topk_ids', 'topk_weights']);
  expect((await metadata('deepseek_v4-hash.moe.2')).inputs).toHaveLength(1);

  const rows = { name: 'hidden_states', datatype: 'BF16', shape: [2, tokens / 2, hidden] };
  const ids = { name: 'token_ids', datatype: 'INT64', shape: [2, tokens / 2] };
  const raw = (values: readonly (number | bigint)[]) =>
    Buffer.from(BigInt64Array.from(values, BigInt).buffer);
  const bytes = Buffer.from(expected.bytes);
  const request = { modelName, inputs: [rows, ids], rawInputContents: [bytes, raw([...tokenIds])] };
  expectBlock((await infer(client, request)).rawOutputContents[0]!, 0);
  const typed = (tensor: object, contents: object) => ({ ...tensor, contents });
  const floats = [...expected.input];
  const answer = await infer(client, {
    modelName,
    inputs: [
      typed({ ...rows, datatype: 'FP32' }, { fp32Contents: floats }),
      typed(ids, { int64Contents: [...tokenIds] }),
    ],
  });
  expectBlock(narrowed(answer.rawOutputContents[0]!), 0);

  const refused = (also: object) =>
    infer(client, { ...request, ...also }).then(
      () => null,
      (error) => error.message,
    );
  expect(await refused({ inputs: [rows], rawInputContents: [bytes] })).toMatch(
    /inputs is "neither token_ids nor topk_ids"; allowed: one of the two/,
  );
  const wrong = [...tokenIds].map((id, token) => (token === 3 ? -1 : id));
  expect(await refused({ rawInputContents: [bytes, raw(wrong)] })).toMatch(
    /token_ids of token 3 is "?-1"?; allowed: 0 to 15/,
  );
  expect(await refused({ inputs: [rows, { ...ids, shape: [tokens] }] })).toMatch(
    /shape of token_ids is "\[32, ...\]"; allowed: \[2, 16, ...\], as hidden_states has it/,
  );
  expect(await refused({ outputs: [{ name: 'token_ids' }] })).toMatch(
    /outputs\[0\].name is "token_ids"; allowed: hidden_states, topk_ids, topk_weights/,
  );
  expect(await refused({ modelName: 'deepseek_v4-hash.moe.2' })).toMatch(
    /inputs\[1\].name is "token_ids"; allowed: hidden_states, topk_ids, topk_weights/,
  );
});

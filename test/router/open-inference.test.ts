import { describe, expect, test } from '@jest/globals';
import type { ModelInferRequestInput } from '../../services/common/generated/inference/ModelInferRequest.js';
import type { ModelStreamInferResponse } from '../../services/common/generated/inference/ModelStreamInferResponse.js';
import { fromServiceError } from '../../services/common/status.js';
import { until } from '../support/until.js';
import { type ForwardWishes, forward, rowBytes, shape, startCluster, tokens, untilIdle } from './cluster.js';
import {
  ask,
  infer,
  model,
  openInferenceOf,
  openInferenceState,
  parameters,
  requestOf,
  widened,
} from './open-inference-support.js';

const feedbackOff = { coordinator: { feedback: false } };
const { topK, layers, hidden } = shape;

test('the Open Inference Protocol describes the layers of a cluster as models', async () => {
  const { routers } = await startCluster(feedbackOff);
  const client = openInferenceOf(routers[0]!);
  expect(await ask(client, 'ServerLive')).toEqual({ live: true });
  await until(async () => (await ask<{ ready: boolean }>(client, 'ServerReady')).ready);
  expect(await ask(client, 'ServerMetadata')).toMatchObject({
    name: 'switchyard',
    extensions: expect.arrayContaining(['statistics', 'system_shared_memory', 'model_configuration']),
  });
  const { models } = await ask<{ models: { name: string; state: string }[] }>(client, 'RepositoryIndex');
  expect(models.map(({ name }) => name)).toEqual([
    model,
    ...['layer', 'moe'].flatMap((kind) => [0, 1, 2].map((layer) => `${model}.${kind}.${layer}`)),
  ]);
  expect(models.every(({ state }) => state === 'READY')).toBe(true);
  expect(await ask(client, 'ModelReady', { name: `${model}.moe.2`, version: '1' })).toEqual({ ready: true });
  const metadata = await ask(client, 'ModelMetadata', { name: model });
  const tensors = [
    { name: 'hidden_states', datatype: 'BF16', shape: [-1, hidden] },
    { name: 'topk_ids', datatype: 'INT32', shape: [-1, layers, topK] },
    { name: 'topk_weights', datatype: 'FP32', shape: [-1, layers, topK] },
  ];
  expect(metadata).toMatchObject({
    name: model,
    versions: ['1'],
    inputs: tensors.slice(0, 1),
    outputs: tensors,
  });
  expect(await ask(client, 'ModelConfig', { name: `${model}.layer.1` })).toMatchObject({
    config: {
      maxBatchSize: 0,
      input: [{ name: 'hidden_states', dataType: 'TYPE_BF16', dims: [-1, hidden] }],
      output: [
        { name: 'hidden_states', dataType: 'TYPE_BF16', dims: [-1, hidden] },
        { name: 'topk_ids', dataType: 'TYPE_INT32', dims: [-1, topK] },
        { name: 'topk_weights', dataType: 'TYPE_FP32', dims: [-1, topK] },
      ],
      modelTransactionPolicy: { decoupled: false },
    },
  });
  for (const method of ['ModelReady', 'ModelMetadata', 'ModelConfig', 'ModelStatistics'] as const) {
    for (const [request, text] of [
      [{ name: 'other' }, /model name is "other"; allowed: demo, demo.layer.N, demo.moe.N with N of 0, 1, 2/],
      [{ name: `${model}.layer.7` }, /model name is "demo.layer.7"/],
      [{ name: model, version: '2' }, /model version is "2"; allowed: 1, or none/],
    ] as const) {
      await expect(ask(client, method, request)).rejects.toMatchObject({
        code: 'NOT_FOUND',
        message: expect.stringMatching(text),
      });
    }
  }
});

test('a model of it computes what a batch of the router does, in every type of rows', async () => {
  const { routers } = await startCluster(feedbackOff);
  const router = routers[0]!;
  const client = openInferenceOf(router);
  const rows = await tokens(300);
  const bare = { norm: 'OFF', residual: 'OFF' } as const;
  const cases: [string, ForwardWishes][] = [
    [model, {}],
    [`${model}.layer.1`, { firstLayer: 1, lastLayer: 1 }],
    [`${model}.moe.2`, { firstLayer: 2, lastLayer: 2, options: bare }],
  ];
  for (const [modelName, wishes] of cases) {
    const expected = (await forward(router, rows, wishes)).rows;
    const answer = await infer(client, requestOf(rows, { modelName, id: 'seven' }));
    expect(answer).toMatchObject({ modelName, modelVersion: '1', id: 'seven' });
    expect(answer.outputs).toMatchObject([{ name: 'hidden_states', datatype: 'BF16', shape: [300, hidden] }]);
    expect(answer.rawOutputContents[0]!.equals(expected)).toBe(true);
    const [input] = requestOf(rows).inputs!;
    const wide = await infer(client, {
      modelName,
      inputs: [{ ...input, datatype: 'FP32', shape: [3, 100, hidden] }],
      rawInputContents: [widened(rows)],
    });
    expect(wide.outputs[0]!.shape).toEqual([3, 100, hidden]);
    expect(wide.rawOutputContents[0]!.equals(widened(expected))).toBe(true);
    const floats = [...new Float32Array(new Uint8Array(widened(rows)).buffer)];
    const typed = await infer(client, {
      modelName,
      inputs: [{ ...input, datatype: 'FP32', contents: { fp32Contents: floats } }],
    });
    expect(typed.rawOutputContents[0]!.equals(widened(expected))).toBe(true);
    // Rows of ones are the same in all types: 0x3c00 as float16, 0x3f80 as BF16.
    const ones = (bits: number) => Buffer.from(Uint16Array.from({ length: hidden }, () => bits).buffer);
    const half = await infer(client, {
      modelName,
      inputs: [{ ...input, datatype: 'FP16', shape: [1, hidden] }],
      rawInputContents: [ones(0x3c00)],
    });
    const [full] = (await infer(client, requestOf(ones(0x3f80), { modelName }))).rawOutputContents;
    expect(half.outputs[0]!.datatype).toBe('FP16');
    const asHalf = new Uint16Array(new Uint8Array(half.rawOutputContents[0]!).buffer);
    const asFull = new Float32Array(new Uint8Array(widened(full!)).buffer);
    for (const [index, bits] of asHalf.entries()) {
      const exponent = (bits >> 10) & 31;
      const magnitude =
        exponent === 0 ? (bits & 1023) * 2 ** -24 : (1024 + (bits & 1023)) * 2 ** (exponent - 25);
      const value = bits & 0x8000 ? -magnitude : magnitude;
      expect(Math.abs(value - asFull[index]!)).toBeLessThanOrEqual(Math.max(2 ** -25, magnitude * 2 ** -11));
    }
  }
  const { modelStats } = await ask<{ modelStats: { name: string; inferenceStats: unknown }[] }>(
    client,
    'ModelStatistics',
  );
  const counted = { success: { count: 5 }, fail: { count: 0 }, computeInfer: { count: 5 } };
  expect(modelStats.find(({ name }) => name === `${model}.moe.2`)).toMatchObject({ inferenceStats: counted });
  expect(modelStats).toHaveLength(7);
  await untilIdle(router);
});

test('routing is returned when it is asked for, and taken when it is given', async () => {
  const { routers } = await startCluster({ ...feedbackOff, router: { chunkTokens: 16 } });
  const client = openInferenceOf(routers[0]!);
  const rows = await tokens(100);
  const outputs = ['topk_weights', 'hidden_states', 'topk_ids'].map((name) => ({ name }));
  for (const [modelName, tail] of [
    [model, [layers, topK]],
    [`${model}.moe.0`, [topK]],
  ] as const) {
    const chosen = await infer(client, requestOf(rows, { modelName, outputs }));
    expect(chosen.outputs.map(({ name, datatype, shape }) => [name, datatype, shape])).toEqual([
      ['topk_weights', 'FP32', [100, ...tail]],
      ['hidden_states', 'BF16', [100, hidden]],
      ['topk_ids', 'INT32', [100, ...tail]],
    ]);
    const [weights, expected, ids] = chosen.rawOutputContents as [Buffer, Buffer, Buffer];
    const inputs = [
      { name: 'topk_ids', datatype: 'INT32', shape: [100, ...tail] },
      { name: 'topk_weights', datatype: 'FP32', shape: [100, ...tail] },
      ...requestOf(rows).inputs!,
    ];
    const given = { modelName, inputs, outputs: [{ name: 'hidden_states' }] };
    const again = await infer(client, { ...given, rawInputContents: [ids, weights, rows] });
    expect(again.rawOutputContents[0]!.equals(expected)).toBe(true);
    const refused = (message: string) =>
      expect(infer(client, { ...given, rawInputContents: [ids, weights, rows] })).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message,
      });
    for (const id of [shape.experts, -1]) {
      ids.writeInt32LE(id, 4);
      await refused(`topk_ids of token 0, layer 0, choice 1 is ${id}; allowed: 0 to 5`);
    }
    ids.writeInt32LE(0, 4);
    weights.writeFloatLE(Number.NaN, 4);
    await refused('topk_weights of token 0, layer 0, choice 1 is NaN; allowed: finite numbers');
  }
  await untilIdle(routers[0]!);
});

test('what is wrong in a request is refused by its name', async () => {
  const { routers } = await startCluster({ ...feedbackOff, router: { messageBytesMax: 64 * 1024 } });
  const client = openInferenceOf(routers[0]!);
  const rows = await tokens(4);
  const input = { name: 'hidden_states', datatype: 'BF16', shape: [4, hidden] };
  const ids = { name: 'topk_ids', datatype: 'INT32', shape: [4, layers, topK] };
  const cases: [ModelInferRequestInput, RegExp, string?][] = [
    [{ modelName: 'none' }, /model name is "none"/, 'NOT_FOUND'],
    [{ modelVersion: '3' }, /model version is "3"/, 'NOT_FOUND'],
    [{ inputs: [], rawInputContents: [] }, /inputs is "none"; allowed: hidden_states among them/],
    [
      { inputs: [{ ...input, name: 'x' }] },
      /inputs\[0\].name is "x"; allowed: hidden_states, topk_ids, topk_weights, each once/,
    ],
    [{ inputs: [input, input], rawInputContents: [rows, rows] }, /inputs\[1\].name is "hidden_states"/],
    [
      { inputs: [{ ...input, datatype: 'INT8' }] },
      /datatype of hidden_states is "INT8"; allowed: BF16, FP16, FP32/,
    ],
    [
      { inputs: [{ ...input, shape: [4, 65] }] },
      /shape of hidden_states is "\[4, 65\]"; allowed: \[tokens, 64\], \[batch, tokens, 64\]/,
    ],
    [{ inputs: [{ ...input, shape: [hidden] }] }, /shape of hidden_states is "\[64\]"/],
    [{ inputs: [{ ...input, shape: [-4, hidden] }] }, /shape of hidden_states is "\[-4, 64\]"/],
    [{ inputs: [{ ...input, shape: [0, hidden] }] }, /shape of hidden_states is "\[0, 64\]"/],
    [
      { inputs: [{ ...input, shape: [5, hidden] }] },
      /contents of hidden_states is "512 bytes"; allowed: 640 bytes: 5 x 64 BF16/,
    ],
    [
      { inputs: [{ ...input, contents: { fp32Contents: [1, 2] } }] },
      /contents of hidden_states is "2 values of fp32Contents"; allowed: none beside raw_input_contents/,
    ],
    [{ inputs: [{ ...input, contents: { intContents: [] } }] }, /^$/, 'OK'],
    [{ rawInputContents: [] }, /contents of hidden_states is "missing"; allowed: raw_input_contents/],
    [{ rawInputContents: [rows, rows] }, /raw_input_contents is "2 of them"; allowed: one for each input/],
    [
      { inputs: [input, ids], rawInputContents: [rows, Buffer.alloc(96)] },
      /inputs is "topk_ids alone"; allowed: both, or neither/,
    ],
    [
      {
        inputs: [input, { ...ids, shape: [1, 4, layers, topK] }],
        rawInputContents: [rows, Buffer.alloc(96)],
      },
      /shape of topk_ids is "\[1, 4, ...\]"; allowed: \[4, ...\], as hidden_states has it/,
    ],
    [
      { inputs: [input, { ...ids, datatype: 'INT64' }], rawInputContents: [rows, rows] },
      /datatype of topk_ids is "INT64"; allowed: INT32/,
    ],
    [{ outputs: [{ name: 'y' }] }, /outputs\[0\].name is "y"/],
    ...['__proto__', 'constructor', 'toString'].flatMap((name): [ModelInferRequestInput, RegExp][] => [
      [
        { inputs: [{ ...input, name }] },
        new RegExp(
          `^inputs\\[0\\].name is "${name}"; allowed: hidden_states, topk_ids, topk_weights, each once$`,
        ),
      ],
      [
        { outputs: [{ name }] },
        new RegExp(
          `^outputs\\[0\\].name is "${name}"; allowed: hidden_states, topk_ids, topk_weights, each once$`,
        ),
      ],
    ]),
    [
      { outputs: [{ name: 'hidden_states', parameters: parameters({ classification: 3 }) }] },
      /hidden_states.parameters is "classification"/,
    ],
    [
      { parameters: parameters({ priority: 3 }) },
      /parameters.priority is 3; allowed: no parameter but timeout/,
    ],
    [{ parameters: parameters({ timeout: 'soon' }) }, /parameters.timeout is "soon"; allowed: microseconds/],
    [
      { inputs: [{ ...input, shape: [2048, hidden] }], rawInputContents: [Buffer.alloc(2048 * rowBytes)] },
      /^$/,
      'OK',
    ],
    [
      { inputs: [{ ...input, shape: [16384, hidden] }], rawInputContents: [Buffer.alloc(16384 * rowBytes)] },
      /bytes of a message of \/inference.GRPCInferenceService\/ModelInfer is \d+; allowed: at most 65536, by messageBytesMax of router router-0/,
      'TOO_LARGE',
    ],
  ];
  for (const [also, message, code = 'INVALID_ARGUMENT'] of cases) {
    const outcome = await infer(client, requestOf(rows, also)).then(
      () => ({ code: 'OK', message: '' }),
      (error) => error,
    );
    expect({ code: outcome.code, message: outcome.message }).toEqual({
      code,
      message: expect.stringMatching(message),
    });
  }
  await untilIdle(routers[0]!);
});

describe('a stream of requests', () => {
  test('answers them in their order, each by itself, and goes on after one that is wrong', async () => {
    const { routers } = await startCluster({ ...feedbackOff, router: { chunkTokens: 32 } });
    const call = openInferenceOf(routers[0]!).ModelStreamInfer();
    const received: ModelStreamInferResponse[] = [];
    call.on('data', (message) => received.push(message));
    const ended = new Promise((resolve) => call.once('end', resolve).once('error', resolve));
    const sizes = [2000, 1, 300, 7, 1];
    const batches = await Promise.all(sizes.map((size, seed) => tokens(size, seed)));
    for (const [index, rows] of batches.entries()) call.write(requestOf(rows, { id: `${index}` }));
    call.write(requestOf(batches[1]!, { id: 'wrong', modelName: 'none' }));
    call.write(requestOf(batches[1]!, { id: 'late', parameters: parameters({ timeout: 0 }) }));
    call.end();
    await ended;
    expect(received.map(({ inferResponse }) => inferResponse!.id)).toEqual([
      '0',
      '1',
      '2',
      '3',
      '4',
      'wrong',
      'late',
    ]);
    for (const [index, rows] of batches.entries()) {
      const expected = (await forward(routers[0]!, rows)).rows;
      expect(received[index]!.errorMessage).toBe('');
      expect(received[index]!.inferResponse!.rawOutputContents[0]!.equals(expected)).toBe(true);
    }
    expect(received[5]).toMatchObject({
      errorMessage: expect.stringMatching(/^NOT_FOUND: model name is "none"/),
      inferResponse: { rawOutputContents: [] },
    });
    await untilIdle(routers[0]!);
  });

  test('is given up with its client, and ends with CLIENT_STALLED if that takes nothing', async () => {
    const { routers } = await startCluster({ router: { clientStallMs: 400 } });
    const router = routers[0]!;
    const rows = await tokens(8000);
    const gone = openInferenceOf(router).ModelStreamInfer();
    gone.on('error', () => {});
    for (let count = 0; count < 5; count += 1) gone.write(requestOf(rows));
    await until(
      () => openInferenceState(router),
      ({ streams }) => streams === 1,
    );
    gone.cancel();
    await until(
      () => openInferenceState(router),
      ({ streams, answers }) => streams === 0 && answers.used === 0,
    );
    const deaf = openInferenceOf(router).ModelStreamInfer();
    const end = new Promise((resolve) => deaf.once('error', resolve));
    deaf.on('data', () => {});
    deaf.pause();
    deaf.write(requestOf(rows));
    await until(
      () => openInferenceState(router),
      ({ streams }) => streams === 1,
    );
    // More than a client of grpc-js and the windows of HTTP/2 take.
    for (let count = 0; count < 60; count += 1) deaf.write(requestOf(rows));
    await until(
      () => openInferenceState(router),
      ({ streams, answers }) => streams === 0 && answers.used === 0,
    );
    deaf.resume();
    expect(fromServiceError(await end)).toMatchObject({ code: 'CLIENT_STALLED' });
    await untilIdle(router);
  });
});

test('a client needs its token, but not to ask whether the router lives', async () => {
  const { routers } = await startCluster({ router: { clientToken: 'secret' } });
  const stranger = openInferenceOf(routers[0]!);
  expect(await ask(stranger, 'ServerLive')).toEqual({ live: true });
  const rows = await tokens(1);
  for (const method of ['ServerMetadata', 'RepositoryIndex', 'SystemSharedMemoryStatus'] as const)
    await expect(ask(stranger, method)).rejects.toMatchObject({ code: 'UNAUTHENTICATED' });
  await expect(infer(stranger, requestOf(rows))).rejects.toMatchObject({ code: 'UNAUTHENTICATED' });
  const answer = await infer(openInferenceOf(routers[0]!, 'secret'), requestOf(rows));
  expect(answer.rawOutputContents[0]!.byteLength).toBe(rowBytes);
});

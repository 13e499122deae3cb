import { expect, test } from '@jest/globals';
import { forward, rowBytes, shape, startCluster, tokens, untilIdle } from './cluster.js';
import {
  ask,
  infer,
  inRegion,
  model,
  openInferenceOf,
  openInferenceState,
  parameters,
  requestOf,
  Segment,
  widened,
} from './open-inference-support.js';

const { hidden, layers, topK } = shape;
const feedbackOff = { coordinator: { feedback: false } };

test('rows and routing come from shared memory and go there', async () => {
  // The whole is more than a message may have, and than the chunks under way.
  const count = 20_000;
  const router = { messageBytesMax: 64 * 1024, budgetBytes: 4 * 1024 * 1024 };
  const { routers } = await startCluster({ ...feedbackOff, router });
  const client = openInferenceOf(routers[0]!);
  const rows = await tokens(count);
  const expected = widened((await forward(routers[0]!, rows)).rows);
  const bytes = expected.byteLength;
  const routingBytes = count * layers * topK * 4;
  const segment = new Segment('rows', 100 + 2 * bytes + 2 * routingBytes);
  segment.write(widened(rows), 100);
  const region = { name: 'all', key: segment.key, offset: 100, byteSize: 2 * bytes + 2 * routingBytes };
  await ask(client, 'SystemSharedMemoryRegister', region);
  expect(await ask(client, 'SystemSharedMemoryStatus')).toEqual({ regions: { all: region } });
  const rowsInput = {
    name: 'hidden_states',
    datatype: 'FP32',
    shape: [count, hidden],
    parameters: inRegion('all', bytes),
  };
  const places = {
    hidden_states: inRegion('all', bytes, bytes),
    topk_ids: inRegion('all', routingBytes, 2 * bytes),
    topk_weights: inRegion('all', routingBytes, 2 * bytes + routingBytes),
  };
  const outputs = Object.entries(places).map(([name, parameters]) => ({ name, parameters }));
  const answer = await infer(client, { modelName: model, inputs: [rowsInput], outputs });
  expect(answer.outputs.map(({ name }) => name)).toEqual(Object.keys(places));
  expect(answer.rawOutputContents.map(({ byteLength }) => byteLength)).toEqual([0, 0, 0]);
  expect(segment.read(bytes, 100 + bytes).equals(expected)).toBe(true);
  // The routing that lies there now gives the same rows.
  segment.write(Buffer.alloc(bytes), 100 + bytes);
  const routing = [
    { name: 'topk_ids', datatype: 'INT32', shape: [count, layers, topK], parameters: places.topk_ids },
    { name: 'topk_weights', datatype: 'FP32', shape: [count, layers, topK], parameters: places.topk_weights },
  ];
  const inputs = [rowsInput, ...routing];
  await infer(client, { modelName: model, inputs, outputs: outputs.slice(0, 1) });
  expect(segment.read(bytes, 100 + bytes).equals(expected)).toBe(true);
  // BF16 goes as it is.
  segment.write(rows, 100);
  const bf16 = { ...rowsInput, datatype: 'BF16', parameters: inRegion('all', rows.byteLength) };
  const out = { name: 'hidden_states', parameters: inRegion('all', rows.byteLength, bytes) };
  await infer(client, { modelName: model, inputs: [bf16], outputs: [out] });
  expect(widened(segment.read(rows.byteLength, 100 + bytes)).equals(expected)).toBe(true);
  // A request that is under way keeps its memory when the name is gone.
  const last = infer(client, { modelName: model, inputs: [bf16], outputs: [out] });
  await ask(client, 'SystemSharedMemoryUnregister', { name: 'all' });
  await last.catch((error) => expect(error).toMatchObject({ code: 'NOT_FOUND' }));
  expect(await ask(client, 'SystemSharedMemoryStatus')).toEqual({ regions: {} });
  await untilIdle(routers[0]!);
});

test('shared memory that is not there, too short or cut short is refused, and regions are bounded', async () => {
  const { routers } = await startCluster({ ...feedbackOff, router: { sharedMemoryRegions: 2 } });
  const router = routers[0]!;
  const client = openInferenceOf(router);
  const segment = new Segment('short', 10 * rowBytes);
  const register = (region: object) =>
    ask(client, 'SystemSharedMemoryRegister', {
      name: 'r',
      key: segment.key,
      byteSize: 10 * rowBytes,
      ...region,
    });
  const refused = (code: string, text: RegExp) => ({ code, message: expect.stringMatching(text) });
  for (const [region, code, text] of [
    [
      { key: '/etc/passwd' },
      'INVALID_ARGUMENT',
      /shared_memory_key is "\/etc\/passwd"; allowed: the name of a segment in \/dev\/shm/,
    ],
    [{ key: '/switchyard-none' }, 'INVALID_ARGUMENT', /which cannot be opened: No such file/],
    [
      { byteSize: 10 * rowBytes + 1 },
      'INVALID_ARGUMENT',
      /offset \+ byte_size is 0 \+ 1281; allowed: at most the 1280 bytes/,
    ],
    [{ offset: 1, byteSize: 10 * rowBytes }, 'INVALID_ARGUMENT', /offset \+ byte_size is 1 \+ 1280/],
    [{ byteSize: 0 }, 'INVALID_ARGUMENT', /byte_size is 0/],
    [{ name: '' }, 'INVALID_ARGUMENT', /name is ""; allowed: 1 to 1024 characters/],
  ] as const) {
    await expect(register(region)).rejects.toMatchObject(refused(code, text));
  }
  await register({});
  await expect(register({})).rejects.toMatchObject(
    refused('NAME_TAKEN', /name is "r", which a registered region has/),
  );
  await register({ name: 'second' });
  await expect(register({ name: 'third' })).rejects.toMatchObject(
    refused(
      'RESOURCE_EXHAUSTED',
      /registered regions is 3; allowed: at most 2, by sharedMemoryRegions of router router-0/,
    ),
  );
  const input = {
    name: 'hidden_states',
    datatype: 'BF16',
    shape: [10, hidden],
    parameters: inRegion('r', 10 * rowBytes),
  };
  const rows = await tokens(10);
  for (const [also, code, text] of [
    [{ ...input, parameters: inRegion('gone', 1) }, 'NOT_FOUND', /shared_memory_region is "gone"/],
    [
      { ...input, parameters: inRegion('r', 10 * rowBytes, 1) },
      'INVALID_ARGUMENT',
      /is "1 \+ 1280"; allowed: at most the 1280 bytes of region "r"/,
    ],
    [
      { ...input, parameters: inRegion('r', 9 * rowBytes) },
      'INVALID_ARGUMENT',
      /contents of hidden_states is "1152 bytes"/,
    ],
    [
      { ...input, contents: { fp32Contents: [1] as number[] } },
      'INVALID_ARGUMENT',
      /contents of hidden_states is "1 values of fp32Contents"; allowed: none beside shared memory/,
    ],
    [
      { ...input, parameters: parameters({ shared_memory_offset: 5 }) },
      'INVALID_ARGUMENT',
      /shared_memory_offset/,
    ],
    [
      { ...input, parameters: parameters({ shared_memory_region: 'r' }) },
      'INVALID_ARGUMENT',
      /shared_memory_byte_size is "missing"/,
    ],
  ] as const) {
    const answer = infer(client, { modelName: model, inputs: [also] });
    await expect(answer).rejects.toMatchObject(refused(code, text));
  }
  const small = { name: 'hidden_states', parameters: inRegion('r', 9 * rowBytes) };
  await expect(infer(client, requestOf(rows, { outputs: [small] }))).rejects.toMatchObject(
    refused(
      'INVALID_ARGUMENT',
      /shared_memory_byte_size is 1152; allowed: at least 1280 bytes: 10 x 64 BF16/,
    ),
  );
  // A client that cuts its segment short harms itself alone.
  segment.resize(rowBytes);
  const whole = { name: 'hidden_states', parameters: inRegion('r', 10 * rowBytes) };
  for (const request of [{ modelName: model, inputs: [input] }, requestOf(rows, { outputs: [whole] })]) {
    await expect(infer(client, request)).rejects.toMatchObject(
      refused(
        'INVALID_ARGUMENT',
        /which was cut to 128 bytes; allowed: a segment that stays as long as it was/,
      ),
    );
  }
  await infer(client, requestOf(rows));
  // What a client that died has left makes way.
  segment.unlink();
  const other = new Segment('other', rowBytes);
  await register({ name: 'third', key: other.key, byteSize: rowBytes });
  expect((await openInferenceState(router)).regions).toBe(1);
  await untilIdle(router);
});

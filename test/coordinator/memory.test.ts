import { expect, test } from '@jest/globals';
import type { Member } from '../../services/coordinator/membership.js';
import { roomForExperts, weightBytes } from '../../services/coordinator/memory.js';
import type { ModelSpec } from '../../services/model/spec.js';

const gibibyte = 1024 ** 3;

/** Stored in 8 bits with scales: half of what it is in BF16. */
const packed = {
  hidden: 4096,
  expertBytes: 18_878_976,
  latentBytes: 0,
  layers: [
    { expert: { ffn: 1536, activation: 'swiglu', glu: null, biased: false }, isolated: null, shared: [] },
  ],
} as unknown as ModelSpec;

const worker = (device: string, memoryBytes: number) =>
  ({
    hello: { name: device, host: 'local', device, memoryBytes, memorySharedBytes: 0 },
    worker: { load: { bytesPerSecond: 37_748_736 } },
  }) as unknown as Member;

test('a CUDA device has room for as many experts of a packed checkpoint as it can hold in BF16', () => {
  const [cpu, cuda] = [worker('cpu', gibibyte), worker('cuda:0', gibibyte)];
  const room = roomForExperts([cpu, cuda], packed);
  const copies = (member: Member) => Math.floor(room.get(member)!.memoryBytes / packed.expertBytes);
  expect(copies(cpu)).toBe(56);
  expect(copies(cuda)).toBe(28);
  expect(weightBytes([cpu, cuda], packed).get(cuda)).toBe(gibibyte);
  // One in BF16 a second.
  expect(room.get(cuda)!.loadBytesPerSecond).toBe(packed.expertBytes);
  expect(room.get(cpu)!.loadBytesPerSecond).toBe(37_748_736);
});

test('what experts share is taken once from the room of each worker', () => {
  const [cpu, small] = [worker('cpu', gibibyte), worker('cpu-1', 1000)];
  const room = weightBytes([cpu, small], { latentBytes: 2000 });
  expect([room.get(cpu), room.get(small)]).toEqual([gibibyte - 2000, 0]);
});

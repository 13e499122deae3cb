import { hostname } from 'node:os';
import { z } from 'zod';
import {
  addresses,
  advertisedHost,
  humanBytes,
  humanCount,
  nodeName,
  serverFields,
  text,
  toggle,
} from '../common/config.js';
import { SwitchyardError } from '../common/errors.js';
import { describeMemory, memoryBound, processBytes, usableCores } from '../common/machine.js';
import { defaultNodeName } from '../common/node-name.js';
import { transportChoices } from '../transport/link.js';

const mebibyte = 1024 * 1024;

/** A quarter of a small memory: most of it is for weights. */
function defaultSlabBytes(): number {
  return Math.min(Math.floor(memoryBound().value / 4), 2048 * mebibyte);
}

export const workerSchema = z.object({
  ...serverFields,
  /** All of them: one leads. */
  coordinator: addresses().default(['127.0.0.1:7070']),
  name: nodeName().default(defaultNodeName('worker')),
  advertiseHost: advertisedHost().nullable().default(null),
  /** As the coordinator's topology file names this machine. */
  topologyHost: text().default(hostname()),
  transport: z.enum(transportChoices).default('auto'),
  allowPlaintextRows: toggle().default(false),
  device: z
    .string()
    .regex(/^(cpu|cuda:\d{1,3})$/, { error: 'cpu, or cuda:N for device number N' })
    .default('cpu'),
  threads: humanCount(1, 1024).default(usableCores()),
  memory: humanBytes(1).nullable().default(null),
  model: text().nullable().default(null),
  linkWindowBytes: humanBytes(64 * 1024).default(256 * mebibyte),
  messageBytesMax: humanBytes(64 * 1024, 512 * mebibyte).default(64 * mebibyte),
  slabBytes: humanBytes(mebibyte).default(defaultSlabBytes()),
  maxRows: humanCount(1, 1_048_576).default(1024),
  leaseMs: humanCount(100, 600_000).default(3_000),
  drainMs: humanCount(0, 3_600_000).default(6_500),
});

export type WorkerConfig = z.infer<typeof workerSchema>;

/** What the weights of a worker may take, and in words what sets it. */
export interface WeightBound {
  bytes: number;
  /** The setting, and what it is by default. */
  by: string;
  /** Memory that other workers of the machine may take too, of which the process, its slabs and its weights are; 0: the weights have theirs. */
  sharedBytes: number;
}

/** What is left beside slabs and the process. Throws RESOURCE_EXHAUSTED if the slabs alone do not fit. */
export function roomBesideSlabs({ slabBytes }: WorkerConfig): number {
  const bound = memoryBound();
  const room = bound.value - processBytes;
  if (slabBytes >= room) {
    throw new SwitchyardError(
      'RESOURCE_EXHAUSTED',
      `slabBytes is ${slabBytes}; allowed: less than ${room}, within ${describeMemory(bound)}: the process itself takes ${processBytes}`,
      { key: 'slabBytes', value: slabBytes, allowed: room },
    );
  }
  return room - slabBytes;
}

/**
 * What weights may take: what is left for them, or less if `memory` says so. `deviceBytes`: what a device leaves for them that has memory
 * of its own; null: weights lie in that of the process.
 */
export function weightBound(
  { memory, slabBytes }: WorkerConfig,
  left: number,
  deviceBytes: number | null,
): WeightBound {
  if (deviceBytes !== null)
    return {
      bytes: Math.min(memory ?? deviceBytes, deviceBytes),
      by:
        memory !== null && memory <= deviceBytes
          ? 'memory'
          : 'memory (what is free on the device, less what batches take)',
      sharedBytes: 0,
    };
  if (memory !== null && memory <= left) return { bytes: memory, by: 'memory', sharedBytes: 0 };
  const bound = memoryBound();
  const by = `memory (${describeMemory(bound)}, less slabBytes, ${slabBytes}, and ${processBytes} for the process)`;
  return { bytes: left, by, sharedBytes: bound.value };
}

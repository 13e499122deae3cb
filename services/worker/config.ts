import { availableParallelism, hostname } from 'node:os';
import { z } from 'zod';
import {
  address,
  advertisedHost,
  humanBytes,
  humanCount,
  nodeName,
  serverFields,
  text,
} from '../common/config.js';
import { defaultNodeName } from '../common/node-name.js';
import { transportChoices } from '../transport/link.js';

const mebibyte = 1024 * 1024;

export const workerSchema = z.object({
  ...serverFields,
  coordinator: address().default('127.0.0.1:7070'),
  name: nodeName().default(defaultNodeName('worker')),
  advertiseHost: advertisedHost().nullable().default(null),
  /** As the coordinator's topology file names this machine. */
  topologyHost: text().default(hostname()),
  transport: z.enum(transportChoices).default('auto'),
  device: z
    .string()
    .regex(/^(cpu|cuda:\d{1,3})$/, { error: 'cpu, or cuda:N for device number N' })
    .default('cpu'),
  threads: humanCount(1, 1024).default(availableParallelism()),
  memory: humanBytes(1).nullable().default(null),
  model: text().nullable().default(null),
  linkWindowBytes: humanBytes(64 * 1024).default(256 * mebibyte),
  messageBytesMax: humanBytes(64 * 1024, 512 * mebibyte).default(64 * mebibyte),
  slabBytes: humanBytes(mebibyte).default(2048 * mebibyte),
  maxRows: humanCount(1, 1_048_576).default(1024),
  leaseMs: humanCount(100, 600_000).default(3_000),
  drainMs: humanCount(0, 3_600_000).default(5_000),
});

export type WorkerConfig = z.infer<typeof workerSchema>;

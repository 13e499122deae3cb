import fc from 'fast-check';
import { native } from '../../native/index.js';

const kibibyte = 1024;
const mebibyte = 1024 * kibibyte;

/** Models that make different limits bind: narrow tokens with many experts, wide ones, one that few limits can carry. */
export const models = [
  { hidden: 64, ffn: 96, experts: 6, topK: 2, layers: 3, tokensMax: 600 },
  { hidden: 16, ffn: 32, experts: 8, topK: 8, layers: 2, tokensMax: 600 },
  { hidden: 2048, ffn: 64, experts: 4, topK: 2, layers: 1, tokensMax: 240 },
  { hidden: 512, ffn: 32, experts: 16, topK: 8, layers: 1, tokensMax: 400 },
  { hidden: 40_000, ffn: 8, experts: 4, topK: 4, layers: 1, tokensMax: 12 },
] as const;

export interface BatchWishes {
  sequences: number;
  /** Share of the most tokens that a sequence may have. */
  fill: number;
  chunkTokens: number;
  combine: 'exact' | 'partial';
  /** Given routing instead of the gate's. */
  given: boolean;
  returnRouting: boolean;
  transport: 'auto' | 'grpc';
}

export interface ClusterWishes {
  model: number;
  workers: number;
  routers: number;
  worker: Record<string, unknown>;
  router: Record<string, unknown>;
  /** Sent at once, each by a client of its own. */
  batches: BatchWishes[];
}

const transport = fc.constantFrom<('auto' | 'grpc')[]>(
  ...((native.ucx === null ? ['grpc'] : ['auto', 'grpc']) as 'auto'[]),
);

const batch: fc.Arbitrary<BatchWishes> = fc.record({
  sequences: fc.constantFrom(1, 2, 5),
  fill: fc.constantFrom(0, 0.1, 1),
  chunkTokens: fc.constantFrom(0, 1, 5, 100, 8192),
  combine: fc.constantFrom('exact', 'partial'),
  given: fc.boolean(),
  returnRouting: fc.boolean(),
  transport,
});

/** Options at their least, at their defaults, and at what lies beside. */
export const clusters: fc.Arbitrary<ClusterWishes> = fc.record({
  model: fc.nat({ max: models.length - 1 }),
  workers: fc.integer({ min: 1, max: 3 }),
  routers: fc.constantFrom(1, 1, 2, 4),
  worker: fc.record({
    linkWindowBytes: fc.constantFrom(64 * kibibyte, 100_001, mebibyte, 256 * mebibyte),
    messageBytesMax: fc.constantFrom(64 * kibibyte, 65_537, mebibyte, 64 * mebibyte),
    slabBytes: fc.constantFrom(mebibyte, 1_500_001, 8 * mebibyte, 2048 * mebibyte),
    maxRows: fc.constantFrom(1, 13, 1024),
    transport,
  }),
  router: fc.record({
    budgetBytes: fc.constantFrom(4 * mebibyte, 5_000_001, 64 * mebibyte, 512 * mebibyte),
    messageBytesMax: fc.constantFrom(64 * kibibyte, 70_001, mebibyte, 16 * mebibyte),
    chunkTokens: fc.constantFrom(0, 1, 7, 8192),
    batchesMax: fc.constantFrom(1, 2, 3, 512),
    transport,
  }),
  batches: fc.array(batch, { minLength: 1, maxLength: 4 }),
});

/** Tokens of a sequence: at least one, and not more chunks than a test has time for. */
export function lengthOf(wishes: ClusterWishes, { sequences, fill, chunkTokens }: BatchWishes): number {
  const { tokensMax } = models[wishes.model]!;
  const chunk = chunkTokens || (wishes.router.chunkTokens as number) || tokensMax;
  return Math.max(1, Math.floor((fill * Math.min(tokensMax, 60 * chunk)) / sequences));
}

import { expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import type { RoutingRows } from '../../services/client/index.js';
import { startCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

/** The preset `tiny`. */
const hidden = 256;
const perToken = 2 * 2;
const tokens = 3_000;
const allowed = 1e-2;
const input = testRows(tokens, hidden);

interface Answer {
  rows: Uint16Array;
  experts: Uint32Array;
  weights: Float32Array;
}

/** What a cluster with workers on `device` answers; with `routing`, by the experts and weights that another one chose. */
async function answer(device: string, routing?: Answer): Promise<Answer> {
  const cluster = await startCluster({ workers: 2, worker: { device } });
  const given = (first: number, count: number): RoutingRows => ({
    experts: routing!.experts.subarray(first * perToken, (first + count) * perToken),
    weights: routing!.weights.subarray(first * perToken, (first + count) * perToken),
  });
  try {
    const ways = routing ? { given } : { returnRouting: true, feedback: false };
    const result: Answer = {
      rows: new Uint16Array(tokens * hidden),
      experts: new Uint32Array(tokens * perToken),
      weights: new Float32Array(tokens * perToken),
    };
    for await (const chunk of await cluster.client.forward(input, ways)) {
      new Uint8Array(result.rows.buffer).set(chunk.rows, chunk.first * hidden * 2);
      if (!chunk.routing) continue;
      result.experts.set(chunk.routing.experts, chunk.first * perToken);
      result.weights.set(chunk.routing.weights, chunk.first * perToken);
    }
    return result;
  } finally {
    await cluster.stop();
  }
}

/** BF16 bits as numbers. */
function numbers(rows: Uint16Array): Float32Array {
  return new Float32Array(Uint32Array.from(rows, (bits) => bits << 16).buffer);
}

/** The largest relative difference of a row, by the Euclidean norm. */
function worstRow(got: Uint16Array, expected: Uint16Array): number {
  const [a, b] = [numbers(got), numbers(expected)];
  let worst = 0;
  for (let row = 0; row < tokens; row++) {
    let difference = 0;
    let norm = 0;
    for (let i = row * hidden; i < (row + 1) * hidden; i++) {
      difference += (a[i]! - b[i]!) ** 2;
      norm += b[i]! ** 2;
    }
    worst = Math.max(worst, Math.sqrt(difference / norm));
  }
  return worst;
}

/** Backends beside this machine's CPU at its best, and why one is not there. */
const { isa, cuda } = native.describe();
const cudaProblem = cuda === null ? 'the addon is built without CUDA' : cuda.problem;
const others = [
  {
    name: 'AVX2',
    device: 'cpu',
    isa: 'avx2',
    missing: isa.some((name) => /bf16/.test(name)) ? null : 'this CPU has nothing better',
  },
  { name: 'CUDA', device: 'cuda:0', isa: undefined, missing: cudaProblem },
];

let expected: Promise<Answer> | null = null;

for (const other of others) {
  const title = `answers of the CPU at its best and of ${other.name} agree within ${allowed} relative`;
  if (other.missing !== null) {
    test.skip(`${title}: not run, because ${other.missing}`, () => {});
    continue;
  }
  test(title, async () => {
    expected ??= answer('cpu');
    const reference = await expected;
    if (other.isa) process.env.SWITCHYARD_CPU_ISA = other.isa;
    const got = await answer(other.device, reference);
    delete process.env.SWITCHYARD_CPU_ISA;
    const worst = worstRow(got.rows, reference.rows);
    process.stderr.write(`CPU and ${other.name} differ by ${worst.toExponential(1)} relative\n`);
    // Without a difference the same backend would have answered twice.
    expect(worst).toBeGreaterThan(0);
    expect(worst).toBeLessThanOrEqual(allowed);
  });
}

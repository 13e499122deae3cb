import { describe, expect, test } from '@jest/globals';
import type { ForwardOptionsInput } from '../../services/common/generated/switchyard/v1/ForwardOptions.js';
import { decodeBf16 } from '../../services/model/bf16.js';
import { forward, overEachTransport, rowBytes, shape, startCluster, tokens } from './cluster.js';

const options = { feedback: 'OFF', returnRouting: true } as const;
/** Without norm, so that large values stay large. */
const bare = { ...options, norm: 'OFF' } as const;
/** 2^50: one layer makes about its square of it, two more than BF16 holds. */
const large = 0x5880;

/** Some tokens, each with the values given in place of all its own. */
async function rowsWith(count: number, values: Record<number, number>): Promise<Buffer> {
  const rows = await tokens(count);
  for (const [token, value] of Object.entries(values)) {
    for (let at = 0; at < rowBytes; at += 2) rows.writeUInt16LE(value, Number(token) * rowBytes + at);
  }
  return rows;
}

function floats(bytes: Buffer): Float32Array {
  return new Float32Array(new Uint8Array(bytes).buffer);
}

overEachTransport(() => {
  describe('a batch with tokens that are not finite', () => {
    test.each<ForwardOptionsInput>([
      options,
      bare,
      { ...bare, residual: 'OFF' },
      { ...options, combine: 'PARTIAL' },
    ])('has a routing that gives the same bits again, with %j', async (wished) => {
      const { routers } = await startCluster();
      const rows = await rowsWith(40, { 3: 0x7fc0, 4: 0xffff, 30: 0x7f80, 31: 0xff80 });
      rows.writeUInt16LE(0x7f80, 7 * rowBytes + 10);
      rows.writeUInt16LE(0xffc0, 39 * rowBytes);
      const first = await forward(routers[0]!, rows, { options: wished });
      expect(first.summary).toMatchObject({ nonFiniteTokens: 6, nonFiniteOutputs: 6 });
      expect(floats(first.weights).every(Number.isFinite)).toBe(true);
      const given = { experts: first.experts, weights: first.weights };
      const again = await forward(routers[0]!, rows, { options: { ...wished, routing: 'GIVEN' }, given });
      expect(Buffer.compare(again.rows, first.rows)).toBe(0);
      expect(again.summary.nonFiniteOutputs).toBe(6);
    });
  });

  describe('a batch of finite tokens that overflow on the way', () => {
    test.each(['EXACT', 'PARTIAL'] as const)('says how many, combined %s', async (combine) => {
      const { routers } = await startCluster();
      const rows = await rowsWith(100, { 20: large, 21: large, 99: large });
      const { summary } = await forward(routers[0]!, rows, {
        options: { ...bare, combine, chunkTokens: 16 },
      });
      expect(summary).toMatchObject({ nonFiniteTokens: 0, nonFiniteOutputs: 3 });
    });

    test('ends at the first layer where one does, if it refuses such tokens', async () => {
      const { routers } = await startCluster();
      const rows = await rowsWith(100, { 70: large, 71: large });
      const refusing = { ...bare, refuseNonFinite: true, chunkTokens: 64 };
      const refused = forward(routers[0]!, rows, { options: refusing });
      await expect(refused).rejects.toMatchObject({
        code: 'NON_FINITE',
        message: expect.stringContaining('token 70, the first of 2 among tokens 64 to 99'),
        details: { token: 70, layer: 1 },
      });
      const one = await forward(routers[0]!, rows, { options: refusing, lastLayer: 0 });
      expect(one.summary.nonFiniteOutputs).toBe(0);
    });

    test('is whole under a norm, whose squares do not overflow', async () => {
      const { routers } = await startCluster();
      const rows = await rowsWith(10, { 2: 0x7e80, 3: 0xfe80 });
      const { summary } = await forward(routers[0]!, rows, {
        options: { ...options, refuseNonFinite: true, residual: 'OFF' },
      });
      expect(summary).toMatchObject({ nonFiniteTokens: 0, nonFiniteOutputs: 0 });
    });
  });

  test('given weights may be negative or zero', async () => {
    const { routers } = await startCluster();
    const rows = await tokens(20);
    const answer = async (first: number, second: number) => {
      const weights = new Float32Array(40).map((_, index) => (index % 2 === 0 ? first : second));
      const experts = new Uint32Array(40).map((_, index) => (index % 2 === 0 ? 4 : 1));
      const given = { experts: Buffer.from(experts.buffer), weights: Buffer.from(weights.buffer) };
      const outcome = await forward(routers[0]!, rows, {
        lastLayer: 0,
        options: { ...bare, residual: 'OFF', routing: 'GIVEN' },
        given,
      });
      return decodeBf16(outcome.rows);
    };
    const [left, right] = [await answer(1, 0), await answer(0, 1)];
    expect(left.some((value) => value !== 0)).toBe(true);
    expect((await answer(-1, 0)).map((value) => -value)).toEqual(left);
    expect((await answer(0, 0)).every((value) => value === 0)).toBe(true);
    const difference = await answer(-1, 1);
    for (const [index, value] of difference.entries()) {
      const exact = right[index]! - left[index]!;
      expect(Math.abs(value - exact)).toBeLessThanOrEqual(Math.abs(exact) / 255);
    }
    expect(difference).toHaveLength(20 * shape.hidden);
  });
});

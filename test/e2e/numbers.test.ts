import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { readMetrics } from '../../services/cli/node-metrics.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

/** The preset `tiny`. */
const hidden = 256;
const rowBytes = hidden * 2;
const tokens = 64;
const all = `${tokens}`;

const directory = mkdtempSync(join(tmpdir(), 'switchyard-numbers-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** A file of rows, some of which hold one value in every element, its sign in turn. */
function rowsFile(name: string, values: Record<number, number>): string {
  const rows = new Uint16Array(testRows(tokens, hidden).buffer);
  for (const [token, value] of Object.entries(values)) {
    for (let index = 0; index < hidden; index++) {
      rows[Number(token) * hidden + index] = value | (index % 3 === 0 ? 0x8000 : 0);
    }
  }
  const path = join(directory, `${name}.bin`);
  writeFileSync(path, new Uint8Array(rows.buffer));
  return path;
}

/** The line of a report that begins with `name`. */
function line(report: string, name: string): string {
  return report.split('\n').find((each) => each.startsWith(name)) ?? '';
}

const isas = ['avx2', 'avx512-bf16', 'amx-bf16'].filter((name) => native.describe().isa.includes(name));

/** `switchyard forward` at a cluster, with choices that the reference can check. */
function forward(cluster: TestCluster, ...args: string[]) {
  return switchyard(['forward', '--address', cluster.address, '--no-feedback', ...args]);
}

test.each(isas)('zeros, subnormal, tiny and large rows are verified on %s', async (isa) => {
  process.env.SWITCHYARD_CPU_ISA = isa;
  const cluster = await startCluster();
  delete process.env.SWITCHYARD_CPU_ISA;
  const input = rowsFile('ends', {
    0: 0,
    1: 0x0001,
    2: 0x0041,
    3: 0x007f,
    4: 0x0080,
    5: 0x0400,
    6: 0x1f80,
    7: 0x4880,
  });
  for (const ways of [['--norm'], ['--no-norm'], ['--no-norm', '--no-residual']]) {
    const { status, stdout } = await forward(cluster, '--input', input, '--verify', all, ...ways);
    expect(line(stdout, 'verified')).toMatch(
      /yes: relative error .* over 64 tokens, 128 of 128 gate choices equal$/,
    );
    expect([status, line(stdout, 'answers with NaN')]).toEqual([0, '']);
  }
  await cluster.stop();
});

describe('tokens that are not finite, or become so', () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await startCluster();
  });

  test('are reported apart by --verify, and their routing gives the same bits again', async () => {
    const input = rowsFile('broken', { 3: 0x7fc0, 20: 0x7f80, 40: 0x7e00, 41: 0x7e00, 42: 0x7e00 });
    const output = join(directory, 'broken.out.bin');
    const routing = join(directory, 'broken.jsonl');
    const before = await readMetrics(cluster.metricsUrl);
    const files = ['--input', input, '--output', output, '--return-routing', routing];
    const { status, stdout } = await forward(cluster, ...files, '--no-norm', '--verify', all);
    expect(status).toBe(0);
    expect(line(stdout, 'tokens with NaN or infinity').split(/\s{2,}/)[1]).toBe('2');
    expect(line(stdout, 'answers with NaN or infinity').split(/\s{2,}/)[1]).toBe('5');
    expect(line(stdout, 'verified')).toMatch(
      /yes: .* over 59 tokens, 121 of 121 gate choices equal, 2 left out that held NaN or infinity, 3 left out that overflowed$/,
    );
    const after = await readMetrics(cluster.metricsUrl);
    const answered = 'switchyard_non_finite_outputs_total';
    expect((after.get(answered) ?? 0) - (before.get(answered) ?? 0)).toBe(5);

    expect(readFileSync(routing, 'utf8')).not.toContain('null');
    const lines = readFileSync(routing, 'utf8').trim().split('\n');
    const parts = lines.map((text) => JSON.parse(text)).sort((a, b) => a.first - b.first);
    const experts = Uint32Array.from(parts.flatMap((part) => part.experts.flat(2)));
    const weights = Float32Array.from(parts.flatMap((part) => part.weights.flat(2)));
    const given = (first: number, count: number) => ({
      experts: experts.subarray(first * 4, (first + count) * 4),
      weights: weights.subarray(first * 4, (first + count) * 4),
    });
    const call = await cluster.client.forward(readFileSync(input), { given, norm: false });
    const { rows, summary } = await call.collect();
    expect(Buffer.compare(rows, readFileSync(output))).toBe(0);
    expect(summary).toMatchObject({ nonFiniteTokens: 2, nonFiniteOutputs: 5 });
    expect(rows.byteLength).toBe(tokens * rowBytes);
  });

  test('end the batch with --refuse-non-finite, naming token and layer', async () => {
    const became = rowsFile('became', { 9: 0x7e00, 30: 0x7e00 });
    const refused = await forward(cluster, '--input', became, '--no-norm', '--refuse-non-finite');
    expect(refused.status).toBe(1);
    expect(refused.stderr).toContain('NON_FINITE');
    expect(refused.stderr).toContain(
      'the output of layer 0 holds NaN or infinity in token 9, the first of 2 among tokens 0 to 63',
    );
    const came = await forward(cluster, '--input', rowsFile('came', { 9: 0xff80 }), '--refuse-non-finite');
    expect([came.status, came.stderr.includes('chunk.rows of token 9')]).toEqual([1, true]);
    const { stdout } = await forward(cluster, '--input', became, '--no-norm', '--verify', all, '--json');
    expect(JSON.parse(stdout)).toMatchObject({ nonFiniteTokens: 0, nonFiniteOutputs: 2, verified: true });
  });
});

import { mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';

const hidden = 256;
let cluster: TestCluster;
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-e2e-'));
  cluster = await startCluster({ workers: 2, routers: 1, router: { transport: 'grpc' } });
});

afterAll(() => rm(directory, { recursive: true }));

const at = () => ['--address', cluster.address];

/** Rows of small values, as BF16: the upper halves of floats. */
function rows(tokens: number): Buffer {
  const bytes = Buffer.alloc(tokens * hidden * 2);
  for (let index = 0; index < tokens * hidden; index++) {
    const float = Buffer.alloc(4);
    float.writeFloatLE(Math.sin(index * 0.37 + (index >> 8)));
    float.copy(bytes, index * 2, 2, 4);
  }
  return bytes;
}

describe('status', () => {
  test('lists every node with role, state and experts, and what carries each link and why', async () => {
    await cluster.links();
    const { status, stdout } = await switchyard(['status', ...at()]);
    expect(status).toBe(0);
    for (const name of ['worker-0', 'worker-1', 'router-0', 'coordinator']) {
      expect(stdout).toMatch(new RegExp(`^${name} .*ready`, 'm'));
    }
    expect(stdout).toMatch(/^ready; 16 experts of tiny/m);
    const best = native.ucx === null ? 'grpc' : 'ucx';
    for (const worker of ['worker-0', 'worker-1']) {
      expect(stdout).toMatch(new RegExp(`^coordinator +${worker} +${best} +\\S`, 'm'));
      expect(stdout).toMatch(new RegExp(`^router-0 +${worker} +grpc +\\S.*transport is grpc`, 'm'));
    }
  });

  test('gives the same as JSON', async () => {
    const { stdout } = await switchyard(['status', ...at(), '--json']);
    const { view, model } = JSON.parse(stdout);
    expect(model.hidden).toBe(hidden);
    expect(view.ready).toBe(true);
    expect(view.nodes.filter(({ role }: { role: string }) => role === 'ROUTER')).toHaveLength(2);
  });
});

describe('a cluster with a token', () => {
  test('answers nobody without it, and everybody who has it in a file or the environment', async () => {
    const token = 'a-token-of-this-test';
    const guarded = await startCluster({ workers: 1, tokens: { client: token, operator: 'another-token' } });
    const path = join(directory, 'token');
    await writeFile(path, `${token}\n`);
    const address = ['--address', guarded.address];
    const without = await switchyard(['status', ...address]);
    expect(without.status).toBe(1);
    expect(without.stderr).toMatch(/^switchyard: UNAUTHENTICATED: /);
    const wrong = await switchyard(['status', ...address], { SWITCHYARD_TOKEN: 'another' });
    expect(wrong.stderr).toMatch(/^switchyard: UNAUTHENTICATED: /);
    expect((await switchyard(['status', ...address, '--token-file', path])).status).toBe(0);
    const forward = await switchyard(['forward', ...address, '--sequences', '2', '--length', '8'], {
      SWITCHYARD_TOKEN: token,
    });
    expect(forward.status).toBe(0);
    expect((await fetch(`${guarded.metricsUrl}/metrics`)).status).toBe(401);
    expect((await fetch(`${guarded.metricsUrl}/healthz`)).status).toBe(200);
    await guarded.stop();
  });

  test('is demanded of servers that other machines can reach', async () => {
    const { status, stderr } = await switchyard(['coordinator', '--host', '0.0.0.0', '--port', '0']);
    expect(status).toBe(2);
    expect(stderr).toMatch(
      /CONFIG_INVALID: host is "0\.0\.0\.0".*--client-token-file and --node-token-file and --operator-token-file/,
    );
  });
});

describe('forward', () => {
  test('splits a synthetic batch over the routers and verifies it', async () => {
    const args = ['--sequences', '6', '--length', '100', '--no-feedback', '--verify', '8', '--json'];
    const { status, stdout } = await switchyard(['forward', ...at(), ...args]);
    expect(status).toBe(0);
    const report = JSON.parse(stdout);
    expect(report.tokens).toBe(600);
    expect(report.routers.map(({ tokens }: { tokens: number }) => tokens)).toEqual([300, 300]);
    expect(report.messages.ungrouped).toBe(600 * 2 * 2);
    expect(report.verification).toMatchObject({
      verified: true,
      tokens: 8,
      choicesWrong: 0,
      choicesChecked: 16,
    });
    expect(report.relativeError).toBeLessThan(1e-2);
    expect(report.relativeError).toBeGreaterThan(0);
  });

  test('takes raw rows from a file and writes the same number back', async () => {
    const input = join(directory, 'in.bin');
    const output = join(directory, 'out.bin');
    await writeFile(input, rows(64));
    const args = ['--input', input, '--output', output, '--sequences', '4', '--no-feedback', '--verify'];
    const { status, stdout } = await switchyard(['forward', ...at(), ...args]);
    expect(stdout).toMatch(/^verified +yes/m);
    expect(status).toBe(0);
    expect((await readFile(output)).byteLength).toBe(64 * hidden * 2);
  });

  test('writes the chosen experts and weights as JSON lines', async () => {
    const path = join(directory, 'routing.jsonl');
    const args = ['--sequences', '2', '--length', '50', '--layers', '1', '--return-routing', path];
    expect((await switchyard(['forward', ...at(), ...args])).status).toBe(0);
    const lines = (await readFile(path, 'utf8'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(lines.reduce((tokens, { experts }) => tokens + experts.length, 0)).toBe(100);
    for (const { experts, weights } of lines) {
      expect(experts[0]).toHaveLength(1);
      expect(experts[0][0]).toHaveLength(2);
      expect(weights[0][0][0] + weights[0][0][1]).toBeCloseTo(1, 5);
    }
  });

  test('leaves no output behind when the batch fails', async () => {
    const output = join(directory, 'never.bin');
    const args = ['--sequences', '2', '--length', '10', '--layers', '7', '--output', output];
    const { status, stderr } = await switchyard(['forward', ...at(), ...args]);
    expect(status).toBe(2);
    expect(stderr).toMatch(/^switchyard: UNKNOWN_LAYER: .*7/);
    await expect(readFile(output)).rejects.toThrow('ENOENT');
  });

  test('names an input whose size does not fit', async () => {
    const input = join(directory, 'odd.bin');
    await writeFile(input, rows(2).subarray(0, 700));
    const { status, stderr } = await switchyard(['forward', ...at(), '--input', input]);
    expect(status).toBe(2);
    expect(stderr).toMatch(/INVALID_ARGUMENT: .*odd\.bin.*700 bytes.*multiple of 512/);
  });
});

describe('a number or a file that cannot be is refused at once, by its name and what is allowed:', () => {
  const whole = 'a whole number such as 4096 or 4k';
  const config = (option: string, value: string, allowed: string): [string[], string] => [
    [`--${option}`, value],
    `CONFIG_INVALID: --${option} is "${value}"; allowed: ${allowed}`,
  ];
  test.each<[string[], string]>([
    config('length', '4294967296', `${whole} from 1 to 4294967295`),
    config('sequences', '1e3', `${whole} from 1 to 4294967295`),
    config('sequences', '-4', `${whole} from 1 to 4294967295`),
    config('length', '４', `${whole} from 1 to 4294967295`),
    config('layers', '0-4294967296', 'layers up to 4294967295'),
    config('layers', '0 - 1', 'a layer such as 1, or layers such as 0-3'),
    config('chunk-tokens', '8193', `${whole} from 0 to 8192`),
    config('deadline', '1e9', 'a number from 0.001 to 2000000'),
    config('skew', 'NaN', 'a number from 0 to 10'),
    config('seed', '9007199254740993', `${whole} from 0 to 9007199254740991`),
    config('verify', '0', 'true, false, or a number of tokens from 1 to 65536'),
    config('transport', 'UCX', 'auto, ucx, grpc'),
    config('address', '::1:7070', 'host:port without a scheme'),
    [
      ['--length', '65536', '--sequences', '65537'],
      'INVALID_ARGUMENT: sequences × length is "65537 × 65536"; allowed: at most 4294967296 tokens in a batch',
    ],
    [['--tensor', 'x'], 'INVALID_ARGUMENT: tensor is "x"; allowed: none, unless input names a file'],
    [
      ['--input', 'rows.bin', '--skew', '1'],
      'INVALID_ARGUMENT: skew is 1; allowed: none where input names a file: it is of synthetic rows',
    ],
    [['--input', tmpdir()], `INVALID_ARGUMENT: input is "${tmpdir()}"; allowed: a file that can be read`],
  ])('%j', async (args, message) => {
    const { status, stderr, stdout } = await switchyard(['forward', ...at(), ...args]);
    expect(stderr).toContain(`switchyard: ${message}`);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
  });

  test('a sparse file of more tokens than a batch may have, and an empty one', async () => {
    const large = join(directory, 'sparse.bin');
    await writeFile(large, '');
    const empty = await switchyard(['forward', ...at(), '--input', large]);
    expect(empty.stderr).toMatch(/INVALID_ARGUMENT: the size of .* is "0 bytes"; allowed: a multiple of 512/);
    await truncate(large, (2 ** 32 + 1) * hidden * 2);
    const { status, stderr } = await switchyard(['forward', ...at(), '--input', large]);
    expect(stderr).toContain('sequences × length is "1 × 4294967297"; allowed: at most 4294967296 tokens');
    expect(status).toBe(2);
  });

  test('false leaves the verification out, and 0 leaves the size of chunks to the router', async () => {
    const size = ['--sequences', '2', '--length', '8', '--json'];
    const args = [...size, '--verify', 'false', '--chunk-tokens', '0'];
    const { status, stdout } = await switchyard(['forward', ...at(), ...args]);
    expect(status).toBe(0);
    expect(JSON.parse(stdout).verified).toBeNull();
  });
});

describe('run', () => {
  test('starts a cluster for one batch, keeps the name of the tensor, and leaves no process', async () => {
    const model = join('test', 'fixtures', 'mixtral');
    const input = join('test', 'fixtures', 'mixtral.expected.safetensors');
    const output = join(directory, 'y.safetensors');
    const args = [
      '--model',
      model,
      '--workers',
      '2',
      '--input',
      input,
      '--tensor',
      'input',
      '--output',
      output,
    ];
    const { status, stderr, stdout } = await switchyard(['run', ...args, '--layers', '1', '--verify', '4']);
    expect(stderr).toBe('');
    expect(stdout).toMatch(/^verified +yes/m);
    expect(status).toBe(0);
    expect(tensorNames(await readFile(output))).toEqual(['input']);
  });

  test('tells which process failed, and why', async () => {
    const { status, stderr } = await switchyard([
      'run',
      '--model',
      join(directory, 'nowhere'),
      '--workers',
      '1',
    ]);
    expect(status).toBe(2);
    expect(stderr).toMatch(/^switchyard: MODEL_INVALID: coordinator exited with status 2: .*nowhere/);
  });
});

function tensorNames(file: Buffer): string[] {
  const header = JSON.parse(file.subarray(8, 8 + Number(file.readBigUInt64LE(0))).toString());
  return Object.keys(header).filter((name) => name !== '__metadata__');
}

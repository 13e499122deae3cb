import { execFileSync } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { openTokenIds } from '../../services/model/token-ids-file.js';
import { failure, fixtures, temporaryDirectory, writeSafetensors } from '../model/support.js';
import { switchyard } from '../support/cli.js';

/** All of them, and those behind the first. */
async function readTokenIds(path: string, tokens: number): Promise<Uint32Array> {
  const reader = await openTokenIds(path, tokens);
  try {
    const ids = await reader.read(0, tokens);
    expect(await reader.read(1, tokens - 1)).toEqual(ids.subarray(1));
    return ids;
  } finally {
    await reader.close();
  }
}

const int64 = (values: number[]) => new Uint8Array(BigInt64Array.from(values, BigInt).buffer);

describe('a file of ids of tokens', () => {
  test('is raw uint32, or has them in its only tensor of I64', async () => {
    const directory = await temporaryDirectory();
    const raw = join(directory, 'ids.bin');
    await writeFile(raw, new Uint8Array(Uint32Array.of(5, 2 ** 32 - 1, 0).buffer));
    expect(await readTokenIds(raw, 3)).toEqual(Uint32Array.of(5, 2 ** 32 - 1, 0));
    const path = join(directory, 'ids.safetensors');
    await writeSafetensors(path, {
      rows: { dtype: 'BF16', shape: [3, 1], data: new Uint8Array(6) },
      input_ids: { dtype: 'I64', shape: [1, 3], data: int64([5, 6, 7]) },
    });
    expect(await readTokenIds(path, 3)).toEqual(Uint32Array.of(5, 6, 7));
    const many = join(directory, 'many.safetensors');
    const count = 2 ** 19 + 3;
    const ids = Array.from({ length: count }, (_, index) => (index * 7_919) % 129_280);
    await writeSafetensors(many, {
      labels: { dtype: 'I64', shape: [1], data: int64([1]) },
      token_ids: { dtype: 'I64', shape: [count], data: int64(ids) },
    });
    expect(await readTokenIds(many, count)).toEqual(Uint32Array.from(ids));
  });

  test('that does not fit is refused by name', async () => {
    const directory = await temporaryDirectory();
    const raw = join(directory, 'ids.bin');
    await writeFile(raw, new Uint8Array(12));
    const path = join(directory, 'ids.safetensors');
    const ids = { dtype: 'I64', shape: [3], data: int64([5, -6, 7]) };
    await writeSafetensors(path, { ids });
    const two = join(directory, 'two.safetensors');
    await writeSafetensors(two, { ids, more: ids });
    const fifo = join(directory, 'fifo');
    execFileSync('mkfifo', [fifo]);
    const cases: [string, number, string][] = [
      [raw, 4, `the size of ${raw} is "12 bytes"; allowed: 16 bytes: 4 tokens x uint32`],
      [directory, 4, `tokenIds is "${directory}"; allowed: a file that can be read (it is no regular file)`],
      [fifo, 4, '(it is no regular file)'],
      [join(directory, 'none'), 4, 'ENOENT'],
      [path, 4, `elements of tensor "ids" in ${path} is 3; allowed: 4, the tokens of the batch`],
      [path, 3, 'tensor "ids": element 1 is -6; allowed: 0 to 4294967295'],
      [two, 3, `tensors of I64 in ${two} is 2; allowed: one`],
    ];
    for (const [file, tokens, text] of cases) {
      expect((await failure(() => readTokenIds(file, tokens))).message).toContain(text);
    }
  });
});

test('a batch of a model that chooses experts by ids is verified with them, and refused without', async () => {
  const directory = join(fixtures, 'families', 'deepseek_v4-hash');
  const expected = join(directory, 'expected.safetensors');
  const run = (...options: string[]) => {
    const bare = ['--no-norm', '--no-residual', '--workers', '2'];
    return switchyard(['run', '--model', directory, ...bare, '--verify', ...options]);
  };
  // Synthetic rows have synthetic ids.
  const synthetic = await run('--sequences', '2', '--length', '40');
  expect(synthetic.stdout).toMatch(/verified +yes: .* over 32 tokens, 96 of 96 gate choices equal/);
  const rows = ['--input', expected, '--tensor', 'input', '--sequences', '1'];
  const given = await run(...rows, '--token-ids', expected);
  expect(given.stdout).toMatch(/tokens +32 in/);
  expect(given.stdout).toMatch(/verified +yes: .* 96 of 96 gate choices equal/);
  const without = await run(...rows);
  expect(without.status).toBe(2);
  expect(without.stderr).toContain('tokenIds is "missing"; allowed: a file with the ids of the tokens');
});

test('a batch of a model with experts of images is verified with ids, and without as one of text', async () => {
  const directory = join(fixtures, 'families', 'ernie4_5_vl_moe');
  const expected = join(directory, 'expected.safetensors');
  const run = async (...options: string[]) => {
    const { stdout } = await switchyard([
      'run',
      '--model',
      directory,
      '--workers',
      '2',
      '--verify',
      ...options,
    ]);
    return stdout;
  };
  const verified = /verified +yes: .* over 32 tokens, 64 of 64 gate choices equal/;
  expect(await run('--sequences', '2', '--length', '40')).toMatch(verified);
  const rows = ['--input', expected, '--tensor', 'input', '--sequences', '1'];
  expect(await run(...rows, '--token-ids', expected)).toMatch(verified);
  expect(await run(...rows)).toMatch(verified);
});

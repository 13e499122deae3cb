import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { makeDirectory } from '../../services/common/make-directory.js';

let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-make-directory-'));
});

afterAll(() => rm(directory, { recursive: true }));

test('a directory is made with those above it, once or at once, with its mode', async () => {
  const path = join(directory, 'a', 'b', 'c');
  await Promise.all([makeDirectory(path, 0o700), makeDirectory(path, 0o700)]);
  await makeDirectory(path);
  const found = await stat(path);
  expect([found.isDirectory(), found.mode & 0o777]).toEqual([true, 0o700]);
});

test('where there can be none, that is an error', async () => {
  await writeFile(join(directory, 'file'), '');
  await expect(makeDirectory('/proc/x/y')).rejects.toMatchObject({ code: 'ENOENT' });
  await expect(makeDirectory(join(directory, 'file', 'x'))).rejects.toMatchObject({ code: 'ENOTDIR' });
});

import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import {
  type FileHandle,
  link,
  lstat,
  mkdir,
  readdir,
  readFile,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { assertApart, OutputFile } from '../../services/common/output-file.js';
import { errorOf } from './support.js';

let scratch: string;
let directory: string;
let count = 0;

beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'switchyard-output-'));
});
afterAll(() => rmSync(scratch, { recursive: true }));
beforeEach(async () => {
  count += 1;
  directory = join(scratch, String(count));
  await mkdir(directory);
});

const at = (name: string) => join(directory, name);
const bytes = (text: string) => Buffer.from(text);
const text = (path: string) => readFile(path, 'utf8');

/** Writes "hello, world" to the path, its end first. */
async function writeTo(path: string): Promise<void> {
  const file = await OutputFile.open('output', path);
  await file.write(bytes('world'), 7);
  await file.write(bytes('hello, '), 0);
  await file.close();
}

describe('an output', () => {
  test('is a new file, with the permissions of any other', async () => {
    await writeTo(at('new'));
    await writeFile(at('other'), '');
    expect(await text(at('new'))).toBe('hello, world');
    expect((await stat(at('new'))).mode).toBe((await stat(at('other'))).mode);
  });

  test('replaces what a file held, and keeps its mode and owner', async () => {
    await writeFile(at('x'), 'something longer than the new content', { mode: 0o640 });
    const privileged = process.getuid?.() === 0;
    if (privileged) execFileSync('chown', ['12345:23456', at('x')]);
    await writeTo(at('x'));
    expect(await text(at('x'))).toBe('hello, world');
    const { mode, uid, gid } = await stat(at('x'));
    expect(mode & 0o7777).toBe(0o640);
    if (privileged) expect([uid, gid]).toEqual([12345, 23456]);
  });

  test('goes where a symbolic link leads, and the link stays', async () => {
    await mkdir(at('elsewhere'));
    await writeFile(at('elsewhere/real'), 'old', { mode: 0o600 });
    await symlink('elsewhere/real', at('near'));
    await symlink(at('near'), at('far'));
    await writeTo(at('far'));
    expect(await text(at('elsewhere/real'))).toBe('hello, world');
    expect((await stat(at('elsewhere/real'))).mode & 0o7777).toBe(0o600);
    for (const name of ['near', 'far']) expect((await lstat(at(name))).isSymbolicLink()).toBe(true);
    expect(await readdir(directory)).toEqual(['elsewhere', 'far', 'near']);
  });

  test('makes the file that a symbolic link names, if there is none yet', async () => {
    await mkdir(at('elsewhere'));
    await symlink('elsewhere', at('folder'));
    await symlink('../new', at('elsewhere/link'));
    await writeTo(at('folder/link'));
    expect(await text(at('new'))).toBe('hello, world');
    expect((await lstat(at('elsewhere/link'))).isSymbolicLink()).toBe(true);
  });

  test('reaches all names of a file', async () => {
    await writeFile(at('a'), 'something longer than the new content');
    await link(at('a'), at('b'));
    await writeTo(at('a'));
    expect([await text(at('a')), await text(at('b'))]).toEqual(['hello, world', 'hello, world']);
    expect((await stat(at('a'))).nlink).toBe(2);
  });

  test('is written into a device, which stays one', async () => {
    await writeTo('/dev/null');
    expect((await stat('/dev/null')).isCharacterDevice()).toBe(true);
    expect((await readdir('/dev')).filter((name) => name.includes('partial'))).toEqual([]);
  });

  test('goes through a pipe in order, to a reader that comes later', async () => {
    execFileSync('mkfifo', [at('pipe')]);
    const opening = OutputFile.open('output', at('pipe'));
    const reader = spawn('cat', [at('pipe')]);
    let received = '';
    reader.stdout.on('data', (data) => {
      received += data;
    });
    const ended = new Promise((resolve) => reader.once('close', resolve));
    const file = await opening;
    await file.write(bytes('world'), 7);
    await file.write(bytes('hello, '), 0);
    expect(received).toBe('');
    await file.close();
    await ended;
    expect(received).toBe('hello, world');
    expect((await stat(at('pipe'))).isFIFO()).toBe(true);
  });

  test('gives up waiting for the reader of a pipe when told to', async () => {
    execFileSync('mkfifo', [at('pipe')]);
    const reason = new Error('enough');
    const signal = AbortSignal.abort(reason);
    await expect(OutputFile.open('output', at('pipe'), signal)).rejects.toBe(reason);
  });

  test.each(['file', 'link', 'names', 'pipe', 'nothing'])(
    'that is given up leaves everything as it was: %s',
    async (kind) => {
      if (kind === 'pipe') execFileSync('mkfifo', [at('x')]);
      else if (kind !== 'nothing') await writeFile(at('x'), 'old');
      if (kind === 'link') await symlink('x', at('link'));
      if (kind === 'names') await link(at('x'), at('y'));
      const reader = kind === 'pipe' ? spawn('cat', [at('x')]) : null;
      let received = '';
      reader?.stdout.on('data', (data) => {
        received += data;
      });
      const ended = new Promise((resolve) => reader?.once('close', resolve) ?? resolve(null));
      const before = await readdir(directory);
      const file = await OutputFile.open('output', at(kind === 'link' ? 'link' : 'x'));
      await file.write(bytes('hello'));
      await file.abort();
      await file.abort();
      await ended;
      expect(await readdir(directory)).toEqual(before);
      if (['file', 'link', 'names'].includes(kind)) expect(await text(at('x'))).toBe('old');
      expect(received).toBe('');
    },
  );

  test('that cannot be written is refused at once, by its option and path', async () => {
    await symlink('loop', at('loop'));
    for (const path of [directory, at('no/such/directory'), at('loop'), at('new/'), '']) {
      const error = await errorOf(OutputFile.open('returnRouting', path));
      expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
      expect(error.message).not.toContain('.partial');
      expect(error.message).toMatch(/^returnRouting is ".*"; allowed: a file that can be written \(/);
    }
  });

  test('that a full device does not take is an error with its name', async () => {
    const file = await OutputFile.open('output', '/dev/full');
    const error = await errorOf(file.write(bytes('hello')));
    expect(error).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: expect.stringMatching(/^\/dev\/full .*ENOSPC/),
    });
    await file.abort();
  });

  test('whose temporary file cannot be written is an error with its directory', async () => {
    const file = await OutputFile.open('output', '-');
    // As a full disk does, it takes no more.
    const { handle } = (file as unknown as { destination: { handle: FileHandle } }).destination;
    await handle.close();
    const error = await errorOf(file.write(bytes('hello')));
    expect(error.message).toContain(
      `the temporary file for - in ${tmpdir()} (TMPDIR) could not be written: `,
    );
  });

  test('that is not whole for any other reason is an error with its name', async () => {
    await writeFile(at('x'), 'old');
    const replacing = await OutputFile.open('output', at('x'));
    rmSync(at('x'));
    await mkdir(at('x'));
    const error = await errorOf(replacing.close());
    expect(error).toMatchObject({ code: 'DATA_LOSS', details: { file: at('x') } });
    expect(error.message).not.toContain('.partial');
  });

  test('holds what was written, in whatever order', async () => {
    const permuted = fc
      .array(fc.uint8Array({ minLength: 1, maxLength: 50 }), { minLength: 1, maxLength: 10 })
      .chain((parts) =>
        fc.tuple(
          fc.constant(parts),
          fc.shuffledSubarray([...parts.keys()], { minLength: parts.length, maxLength: parts.length }),
        ),
      );
    await fc.assert(
      fc.asyncProperty(permuted, fc.boolean(), async ([parts, order], named) => {
        await writeFile(at('x'), 'old');
        if (named) await link(at('x'), at('y'));
        const file = await OutputFile.open('output', at('x'));
        for (const index of order) {
          const position = parts.slice(0, index).reduce((sum, part) => sum + part.byteLength, 0);
          await file.write(parts[index]!, position);
        }
        await file.close();
        expect(Buffer.concat(parts).equals(await readFile(at('x')))).toBe(true);
        if (named) rmSync(at('y'));
      }),
    );
  });
});

test('two outputs may not be one file', () => {
  expect(() => assertApart({ output: 'x', returnRouting: './x' })).toThrow(
    expect.objectContaining({
      code: 'INVALID_ARGUMENT',
      message: 'returnRouting is "./x"; allowed: another file than that of output',
    }),
  );
  expect(() => assertApart({ output: '-', json: '/dev/stdout' })).toThrow('json is "/dev/stdout"');
  assertApart({ output: 'x', returnRouting: 'y', json: null });
  assertApart({ output: '/dev/null', returnRouting: '/dev/null' });
});

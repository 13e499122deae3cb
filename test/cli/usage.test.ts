import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { commandLine, nodeFlags } from '../../native/locate.js';
import { switchyard } from '../support/cli.js';

const commands = [
  'up',
  'coordinator',
  'router',
  'worker',
  'forward',
  'run',
  'demo',
  'status',
  'plan',
  'bench',
  'doctor',
];

/** One line that begins with the program's name, and no stack. */
function expectOneLine(stderr: string): void {
  expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  expect(stderr).toMatch(/^switchyard: [A-Z_]+: /);
}

describe('the command line', () => {
  test('lists its commands and exit status', async () => {
    const { status, stdout } = await switchyard(['--help']);
    expect(status).toBe(0);
    for (const command of commands) expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'));
    expect(stdout).toContain('Exit status');
  });

  test.each(commands)('%s explains itself with examples', async (command) => {
    const { status, stdout } = await switchyard([command, '--help']);
    expect(status).toBe(0);
    expect(stdout).toContain(`switchyard ${command}`);
    expect(stdout).toContain('Examples:');
    expect(stdout).toContain('--config <file>');
  });

  test.each([
    ['cordon', '', 'worker is "";'],
    ['drain', '', 'worker is "";'],
    ['undrain', '_x', 'worker is "_x";'],
    ['bench', '', 'group is "";'],
  ])('%s "%s" names its argument without dashes', async (command, argument, text) => {
    const { stderr, status } = await switchyard([command, argument]);
    expect(stderr).toContain(`switchyard: CONFIG_INVALID: ${text}`);
    expect(status).toBe(2);
  });

  test.each(['cordon', 'drain', 'undrain', 'rebalance'])(
    '%s takes its keys of a section that others have keys in',
    async (command) => {
      const directory = await mkdtemp(join(tmpdir(), 'switchyard-usage-'));
      const path = join(directory, 'cluster.yaml');
      const run = async (more: string) => {
        const keys = `address: 127.0.0.1:1, worker: w, horizon: 60, recording: ${path}.none${more}`;
        await writeFile(path, `operate: { ${keys} }\n`);
        return switchyard([command, '--config', path]);
      };
      const { stderr } = await run('');
      expect(stderr).toMatch(
        command === 'rebalance'
          ? /none: recording cannot be read as JSON/
          : /^switchyard: NOT_READY: .*127\.0\.0\.1:1/,
      );
      expect((await run(', horizn: 1')).stderr).toContain(
        'operate.horizn is 1; allowed: there is no such key',
      );
      await rm(directory, { recursive: true });
    },
  );

  test('ends quietly when its reader leaves', async () => {
    const program = commandLine();
    const { stderr } = spawnSync('bash', ['-c', `"${process.execPath}" "${program}" up --help | true`]);
    expect(stderr.toString()).toBe('');
  });

  test.each(['--help', 'doctor'])('says why standard output cannot be written: %s', (argument) => {
    const script = '"$0" "$1" "$2" > /dev/full';
    const { stderr, status } = spawnSync('bash', ['-c', script, process.execPath, commandLine(), argument]);
    expectOneLine(stderr.toString());
    expect(stderr.toString()).toContain('standard output could not be written: ENOSPC');
    expect(status).toBe(1);
  });

  test('is a program of its own, with the flags of Node that processes of a local cluster have', () => {
    const program = commandLine();
    const [first] = readFileSync(program, 'utf8').split('\n', 1);
    expect(first).toBe(`#!/usr/bin/env -S node ${nodeFlags.join(' ')}`);
    expect(spawnSync(program, ['--version']).stdout.toString()).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test('tells its version', async () => {
    expect((await switchyard(['--version'])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test.each([
    ['an unknown option', ['up', '--bogus']],
    ['an unknown command', ['fly']],
    ['too many arguments', ['status', 'now']],
  ])('exits with 2 at %s', async (_, args) => {
    const { status, stderr } = await switchyard(args);
    expect(status).toBe(2);
    expect(stderr).toContain('error:');
  });

  test.each([
    ['--workers', '-3', ['up', '--workers', '-3']],
    ['--workers', '0', ['demo', '--workers', '0']],
    ['--preset', 'huge', ['run', '--preset', 'huge']],
    ['--layers', '3-1', ['forward', '--layers', '3-1']],
    ['--port', '70000', ['coordinator', '--port', '70000']],
    ['--slab-bytes', '-1GiB', ['worker', '--slab-bytes=-1GiB']],
    ['--combine', 'most', ['forward', '--combine', 'most']],
  ])('exits with 2 at %s %s, which it names', async (flag, value, args) => {
    const { status, stderr } = await switchyard(args);
    expect(status).toBe(2);
    expectOneLine(stderr);
    expect(stderr).toContain(flag);
    expect(stderr).toContain(value);
    expect(stderr).toContain('allowed');
  });

  test('names the variable of a bad value from the environment', async () => {
    const { status, stderr } = await switchyard(['coordinator'], { SWITCHYARD_METRICS_PORT: 'many' });
    expect(status).toBe(2);
    expectOneLine(stderr);
    expect(stderr).toContain('SWITCHYARD_METRICS_PORT');
  });

  test('names file, section and key of a bad value from the YAML file', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'switchyard-cli-'));
    try {
      const path = join(directory, 'cluster.yaml');
      await writeFile(path, 'worker:\n  maxRows: -4\n');
      const { status, stderr } = await switchyard(['worker', '--config', path]);
      expect(status).toBe(2);
      expectOneLine(stderr);
      expect(stderr).toContain(`${path}: worker.maxRows is -4`);
      const named = await switchyard(['worker'], { SWITCHYARD_CONFIG: path });
      expect(named.stderr).toBe(stderr);
      expect(named.status).toBe(2);
      const missing = await switchyard(['worker'], { SWITCHYARD_CONFIG: join(directory, 'none.yaml') });
      expect(missing.stderr).toContain('SWITCHYARD_CONFIG is "');
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  test('exits with 1 and the address when nothing answers', async () => {
    const { status, stderr } = await switchyard(['status', '--address', '127.0.0.1:1']);
    expect(status).toBe(1);
    expectOneLine(stderr);
    expect(stderr).toContain('127.0.0.1:1');
  });
});

describe('doctor', () => {
  test('reports what a machine has as JSON', async () => {
    const { status, stdout } = await switchyard(['doctor', '--json']);
    expect(status).toBe(0);
    const findings = JSON.parse(stdout) as { name: string; state: string; detail: string }[];
    const byName = new Map(findings.map((finding) => [finding.name, finding]));
    expect(byName.get('Node')).toMatchObject({ state: 'ok' });
    expect(byName.get('native addon')).toMatchObject({ state: 'ok' });
    expect(byName.get('cores')?.detail).toMatch(/^\d+ usable of \d+/);
    const { state, detail } = byName.get('huge pages')!;
    expect(detail).toMatch(
      state === 'ok'
        ? /: expert weights lie in them; /
        : /: expert weights lie (partly )?in pages of 4 KiB, /,
    );
  });

  test('tells of an installation that can hash no files, in which all works that hashes none', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'switchyard-'));
    try {
      const without = join(directory, 'without.cjs');
      await writeFile(
        without,
        `const { Module } = require('node:module'); const resolve = Module._resolveFilename;
        Module._resolveFilename = function (name, ...rest) {
          if (name.startsWith('@napi-rs/blake-hash')) throw new Error('there is none');
          return resolve.call(this, name, ...rest);
        };`,
      );
      const environment = { NODE_OPTIONS: `--require=${without}`, XDG_CACHE_HOME: directory };
      const found = JSON.parse((await switchyard(['doctor', '--json'], environment)).stdout);
      const text = 'files of weights cannot be hashed: the package @napi-rs/blake-hash has no code for';
      expect(found).toContainEqual({
        name: 'BLAKE3',
        state: 'absent',
        detail: expect.stringContaining(text),
      });
      const model = join('test', 'fixtures', 'mixtral');
      const ports = ['--port', '0', '--metrics-port', '0'];
      const { status, stderr } = await switchyard(['coordinator', '--model', model, ...ports], environment);
      expectOneLine(stderr);
      expect(stderr).toContain(`INTERNAL: ${text}`);
      expect(status).toBe(1);
      const run = ['run', '--preset', 'tiny', '--length', '8'];
      expect((await switchyard(run, environment)).status).toBe(0);
    } finally {
      await rm(directory, { recursive: true });
    }
  });
});

test('an address given twice is one, and a cluster that is not there is told', async () => {
  const { status, stderr } = await switchyard(['status', '--address', '127.0.0.1:1,127.0.0.1:1']);
  expectOneLine(stderr);
  expect(stderr).toContain('NOT_READY: nothing answers at 127.0.0.1:1');
  expect(status).toBe(1);
});

test.each([
  ['coordinator', '--budget-bytes', 'budgetBytes'],
  ['worker', '--slab-bytes', 'slabBytes'],
])('a %s with more %s than any memory says what there is', async (role, option, key) => {
  const { status, stderr } = await switchyard([role, option, '99999t', '--port', '0', '--metrics-port', '0']);
  expectOneLine(stderr);
  expect(stderr).toMatch(
    new RegExp(`RESOURCE_EXHAUSTED: ${key} is 99999000000000000; allowed: (at most|less than) \\d+, within`),
  );
  expect(status).toBe(1);
});

test.each([
  ['--budget-bytes', '1', 'a size in bytes such as 1048576, 512k or 1MiB, at least 4194304'],
  ['--hidden', '100000', 'a whole number such as 4096 or 4k from 1 to 65536'],
])('a coordinator tells the range of %s as it is', async (option, value, allowed) => {
  const { status, stderr } = await switchyard(['coordinator', option, value]);
  expect(stderr).toBe(`switchyard: CONFIG_INVALID: ${option} is "${value}"; allowed: ${allowed}\n`);
  expect(status).toBe(2);
});

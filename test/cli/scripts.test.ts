import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import { packageRoot } from '../../native/locate.js';

test.each([
  ['simulate', ['--mutants', 'nosuchmutant', '--json'], 'the mutant is "nosuchmutant"; allowed: '],
  ['simulate', ['--mutants', 'lost-credit', '--seeds', 'abc'], '--seeds is "abc"; allowed: a whole number'],
  ['simulate', ['--mutants', '--seeds'], "Option '--seeds <value>' argument missing; allowed: --mutants, "],
  ['chaos', ['--foo'], "Unknown option '--foo'; allowed: --runs, "],
  ['chaos', ['--workers', '0'], '--workers is "0"; allowed: a whole number from 1 to 256'],
  ['chaos', ['--copies', '9'], '--copies is "9"; allowed: a whole number from 1 to 3'],
  ['chaos', ['--transport', 'foo'], '--transport is "foo"; allowed: auto, ucx, grpc'],
])('the script %s refuses %j at once', (script, args, text) => {
  const path = join(packageRoot(), 'scripts', `${script}.mjs`);
  const { status, stdout, stderr } = spawnSync(process.execPath, [path, ...args], {
    encoding: 'utf8',
    timeout: 30_000,
  });
  expect(stderr).toContain(text);
  expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  expect(stdout).toBe('');
  expect(status).toBe(2);
});

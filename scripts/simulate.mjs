/**
 * Simulated clusters, many seeds: npm run simulate -- --seeds 1000 [--seed 1] [--json]
 * With --mutants: plants the faults of test/simulator/mutants, one at a time, in a copy of dist/, and looks for a seed that finds it.
 * npm run simulate -- --mutants [NAME …] [--seeds 1000] [--json]
 */
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { transformSync } from '@swc/core';
import { oneOf, readArguments, wholeNumber } from './arguments.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const patches = join(root, 'test', 'simulator', 'mutants');
const args = process.argv.slice(2);

if (args.includes('--mutants')) plantAll(args);
else process.exitCode = simulate(root, args, 'inherit').status ?? 1;

function simulate(directory, options, stdio) {
  const main = join(directory, 'dist', 'services', 'cli', 'main.js');
  return spawnSync(process.execPath, [main, 'simulate', ...options], {
    stdio,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
}

function plantAll(options) {
  const { values, positionals: named } = readArguments({
    args: options,
    options: {
      mutants: { type: 'boolean' },
      seeds: { type: 'string', default: '1000' },
      json: { type: 'boolean' },
    },
    allowPositionals: true,
  });
  const { json } = values;
  const seeds = String(wholeNumber('seeds', values.seeds, 1, 100_000_000));
  const known = readdirSync(patches)
    .filter((file) => file.endsWith('.patch'))
    .map((file) => file.slice(0, -'.patch'.length));
  for (const name of named) oneOf('the mutant', name, known);
  const names = known.filter((name) => named.length === 0 || named.includes(name));
  const mutants = names.map((name) => {
    const mutant = plant(name, seeds);
    const line = mutant.found ? `found by seed ${mutant.seeds} of them: ${mutant.violation}` : 'NOT FOUND';
    process.stderr.write(`${name}: ${line}\n`);
    return mutant;
  });
  const found = mutants.filter((mutant) => mutant.found).length;
  const report = { planted: mutants.length, found, mutants };
  process.stdout.write(
    json ? `${JSON.stringify(report)}\n` : `${found} of ${mutants.length} planted faults were found\n`,
  );
  process.exitCode = found === mutants.length ? 0 : 1;
}

/** `seeds`: how many were tried. */
function plant(name, seeds) {
  const scratch = mkdtempSync(join(tmpdir(), 'switchyard-mutant-'));
  try {
    copyBuild(scratch);
    mutate(scratch, name);
    const { stdout, stderr } = simulate(scratch, ['--seeds', seeds, '--until-failure', '--json'], 'pipe');
    const report = JSON.parse(stdout);
    const violation = /^seed \d+: (.*)$/m.exec(stderr)?.[1].slice(0, 200) ?? null;
    return { name, found: report.failed > 0, seeds: report.seeds, violation };
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** What a built package consists of: everything but dist/ as it is. */
function copyBuild(scratch) {
  cpSync(join(root, 'dist'), join(scratch, 'dist'), { recursive: true });
  for (const name of ['native', 'node_modules', 'proto', 'package.json'])
    symlinkSync(join(root, name), join(scratch, name));
}

function mutate(scratch, name) {
  const patch = join(patches, `${name}.patch`);
  const files = [...readFileSync(patch, 'utf8').matchAll(/^\+\+\+ b\/(\S+)$/gm)].map((match) => match[1]);
  for (const file of files) {
    mkdirSync(dirname(join(scratch, file)), { recursive: true });
    cpSync(join(root, file), join(scratch, file));
  }
  const { status, stdout } = spawnSync('patch', ['-p1', '--fuzz=3', '-i', patch], {
    cwd: scratch,
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`${name}.patch does not fit the sources any more:\n${stdout}`);
  for (const file of files) {
    const source = readFileSync(join(scratch, file), 'utf8');
    const { code } = transformSync(source, {
      filename: file,
      jsc: { target: 'es2022', parser: { syntax: 'typescript' } },
      module: { type: 'es6' },
    });
    writeFileSync(join(scratch, 'dist', file.replace(/\.ts$/, '.js')), code);
  }
}

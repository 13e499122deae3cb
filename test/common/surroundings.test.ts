import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from '@jest/globals';
import { packageRoot } from '../../native/locate.js';

const root = packageRoot();

/** What may not be used where time, chance and tracers are given. */
const used = [
  'setTimeout(() => {}, 1);',
  'setInterval(() => {}, 1);',
  'setImmediate(() => {});',
  'AbortSignal.timeout(1);',
  'performance.now();',
  'Date.now();',
  'new Date();',
  'Math.random();',
  "import { randomBytes, randomUUID } from 'node:crypto'; randomBytes(8);",
  "import { randomUUID } from 'node:crypto'; randomUUID();",
  "import { setTimeout as delay } from 'node:timers/promises'; delay(1);",
  "import { systemClock } from '../runtime/system.js'; systemClock.now();",
  "import { sleep } from '../common/lifecycle.js'; sleep(1);",
  "import { trace } from '@opentelemetry/api'; trace.getTracer('own');",
];

/** The files of a tree of these, with their content, that the linter refuses. */
async function refused(files: Record<string, string>): Promise<string[]> {
  const tree = await mkdtemp(join(tmpdir(), 'switchyard-lint-'));
  try {
    await cp(join(root, 'biome.json'), join(tree, 'biome.json'));
    await cp(join(root, 'scripts', 'lint'), join(tree, 'scripts', 'lint'), { recursive: true });
    for (const [path, content] of Object.entries(files)) {
      await mkdir(join(tree, dirname(path)), { recursive: true });
      await writeFile(join(tree, path), content);
    }
    const biome = join(root, 'node_modules', '.bin', 'biome');
    const options = ['lint', '--vcs-enabled=false', '--diagnostic-level=error', '--max-diagnostics=none'];
    const { stderr } = await promisify(execFile)(biome, [...options, 'services'], { cwd: tree }).catch(
      (error: { stderr: string }) => error,
    );
    return Object.keys(files).filter((path) => stderr.includes(`${path}:`));
  } finally {
    await rm(tree, { recursive: true });
  }
}

test('the linter refuses what decides its own time and chance, and leaves them to adapters and clients', async () => {
  const at = (folder: string) => used.map((code, index) => [`services/${folder}/example-${index}.ts`, code]);
  const inRouter = Object.fromEntries(at('router'));
  const elsewhere = Object.fromEntries([...at('client'), ...at('transport/ucx')]);
  const given =
    "import type { Clock } from '../runtime/clock.js';\nexport const at = (clock: Clock) => clock.now();";
  const all = { ...inRouter, ...elsewhere, 'services/worker/given.ts': given };
  expect((await refused(all)).sort()).toEqual(Object.keys(inRouter).sort());
});

/** The files that this one loads, without those of which it takes types alone. */
function loadedBy(file: string): string[] {
  const statements = readFileSync(file, 'utf8').matchAll(
    /^(?:import|export)\s+(?!type\b)([^;]*?)\s*from\s+'(\.[^']+)'/gm,
  );
  return [...statements].flatMap(([, names, path]) => {
    const onlyTypes =
      names!.startsWith('{') &&
      names!
        .slice(1, -1)
        .split(',')
        .every((name) => name.trim() === '' || name.trim().startsWith('type '));
    const source = join(dirname(file), path!.replace(/\.js$/, '.ts'));
    return onlyTypes || !existsSync(source) ? [] : [source];
  });
}

/** By which files `start` loads the addon; empty: it does not. */
function wayToAddon(start: string): string[] {
  const loadedFrom = new Map<string, string | null>([[join(root, start), null]]);
  for (const file of loadedFrom.keys())
    for (const loaded of loadedBy(file)) if (!loadedFrom.has(loaded)) loadedFrom.set(loaded, file);
  const way: string[] = [];
  const addon = join(root, 'native', 'index.ts');
  for (let at: string | null = addon; at !== null && loadedFrom.has(at); at = loadedFrom.get(at)!)
    way.unshift(relative(root, at));
  return way;
}

test.each([
  'services/coordinator/control-service.ts',
  'services/router/core.ts',
  'services/worker/core.ts',
  'services/transport/dial.ts',
  'services/transport/serve.ts',
])('%s does not load the addon', (start) => {
  expect(wayToAddon(start)).toEqual([]);
});

test('a process that serves loads the addon', () => {
  expect(wayToAddon('services/worker/main.ts')[0]).toBe('services/worker/main.ts');
});

/**
 * check-package.mjs: packs the npm package, installs it into a project of its own as a user does, and uses it there: types, SDK
 * and commands. First with nothing on the PATH that compiles; then the addon is built there by the documented command.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { check, until } from './checks.mjs';

const repository = dirname(dirname(fileURLToPath(import.meta.url)));
const project = mkdtempSync(join(tmpdir(), 'switchyard-package-'));
/** Node, npm and what they run, and nothing that compiles. */
const withoutCompiler = join(project, 'path');
const outputOf = ({ stdout, stderr, error }) => `${stdout ?? ''}${stderr ?? ''}${error ?? ''}`;

function run(command, { path = withoutCompiler, environment = {} } = {}) {
  const [program, ...args] = command;
  const env = { HOME: process.env.HOME, PATH: path, ...environment };
  const result = spawnSync(program, args, { cwd: project, env, encoding: 'utf8' });
  return { status: result.status, text: outputOf(result) };
}

function succeed(what, command, options) {
  const { status, text } = run(command, options);
  check(what, status === 0, text);
  return text;
}

/** What is in the tarball, whose path it returns. */
function pack() {
  const options = { cwd: repository, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] };
  const name = execFileSync('npm', ['pack', '--silent', '--pack-destination', project], options);
  const tarball = join(project, name.trim().split('\n').at(-1));
  const files = execFileSync('tar', ['-tzf', tarball], options).trim().split('\n');
  const unwanted = files.filter((file) =>
    /^package\/(test|bench|scripts|native\/(test|bench))\/|\.test\.|\.map$/.test(file),
  );
  check('the package holds no tests', unwanted.length === 0, unwanted.join('\n'));
  process.stdout.write(
    `    ${files.length} files, ${(statSync(tarball).size / 2 ** 20).toFixed(1)} MiB packed\n`,
  );
  return tarball;
}

function install(tarball) {
  writeFileSync(
    join(project, 'package.json'),
    JSON.stringify({ name: 'user-of-switchyard', private: true, type: 'module' }),
  );
  mkdirSync(withoutCompiler);
  for (const program of ['node', 'npm', 'npx', 'sh', 'env'])
    symlinkSync(
      execFileSync('which', [program], { encoding: 'utf8' }).trim(),
      join(withoutCompiler, program),
    );
  succeed('npm install without a compiler', ['npm', 'install', '--silent', tarball]);
}

const program = `
import { type BatchSummary, SwitchyardClient, SwitchyardError } from 'switchyard';

const transport = process.argv[3] === 'ucx' ? 'ucx' : 'auto';
const client = await SwitchyardClient.connect(process.argv[2]!, { transport });
try {
  const { hidden } = await client.describeModel();
  const call = await client.forward(new Uint8Array(2 * 300 * hidden));
  const { rows } = await call.collect();
  const summary: BatchSummary = await call.summary;
  if (rows.byteLength !== 2 * 300 * hidden) throw new SwitchyardError('INTERNAL', 'rows are missing');
  console.log(summary.routers.map((router) => router.transport).join());
} finally {
  await client.close();
}
`;

/** The types as compilers see them that users have. */
function types() {
  writeFileSync(join(project, 'use.ts'), program);
  writeFileSync(join(project, 'wrong.ts'), program.replace('process.argv[2]!', '7070'));
  const options = [
    '--strict',
    '--module',
    'nodenext',
    '--target',
    'es2023',
    '--types',
    'node',
    '--outDir',
    'out',
  ];
  for (const version of ['5.9', '7']) {
    const packages = [`typescript@${version}`, '@types/node@20'];
    succeed(`TypeScript ${version} is installed`, ['npm', 'install', '--silent', '--save-dev', ...packages]);
    succeed('it takes a program of the SDK', ['npx', 'tsc', ...options, 'use.ts']);
    const { status, text } = run(['npx', 'tsc', ...options, '--noEmit', 'wrong.ts']);
    check('and refuses a wrong argument', status !== 0 && /^wrong\.ts.*'number'/m.test(text), text);
  }
}

/** Starts a cluster by the package's command and calls `use` with its address. */
async function withCluster(use) {
  const args = [
    'switchyard',
    'up',
    '--preset',
    'tiny',
    '--workers',
    '2',
    '--port',
    '0',
    '--metrics-port',
    '0',
  ];
  const up = spawn('npx', args, {
    cwd: project,
    env: { HOME: process.env.HOME, PATH: withoutCompiler },
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let text = '';
  let ended = false;
  for (const output of [up.stdout, up.stderr]) output.on('data', (data) => (text += data));
  const exited = new Promise((resolve) => up.once('close', resolve)).finally(() => (ended = true));
  const ready = /^ready in .* at (\S+);/m;
  await until('up is ready', () => {
    if (ended) throw new Error(text);
    return ready.test(text);
  });
  check('npx switchyard up', true);
  try {
    use(ready.exec(text)[1]);
  } finally {
    // As Ctrl-C does.
    process.kill(-up.pid, 'SIGINT');
    await exited;
  }
}

function carriedBy(transport, address, environment = {}) {
  const wanted = transport === 'ucx' ? 'ucx' : 'auto';
  const { status, text } = run(['node', 'out/use.js', address, wanted], { environment });
  const how = Object.entries(environment).map(([key, value]) => `, ${key}=${value}`);
  check(`the SDK over ${transport}${how}`, status === 0 && text.trim() === transport, text);
}

/** The addon anew, by the command that is shown where there is none. */
function build() {
  rmSync(join(project, 'node_modules/switchyard/native/build'), { recursive: true });
  const { status, text } = run(['npx', 'switchyard', 'doctor']);
  const command = /run: (npx cmake-js@8 compile .*)$/m.exec(text)?.[1];
  check(
    'without the addon doctor tells the command that builds it',
    status === 1 && command !== undefined,
    text,
  );
  const path = [withoutCompiler, process.env.PATH].join(delimiter);
  succeed(command, ['sh', '-c', command], { path, environment: { npm_config_yes: 'true' } });
}

try {
  install(pack());
  types();
  succeed('npx switchyard doctor', ['npx', 'switchyard', 'doctor']);
  await withCluster((address) => {
    const batch = ['--address', address, '--sequences', '4', '--length', '64', '--verify'];
    succeed('npx switchyard forward', ['npx', 'switchyard', 'forward', ...batch]);
    carriedBy('grpc', address, { SWITCHYARD_ADDON: '/nonexistent' });
  });
  build();
  await withCluster((address) => carriedBy('ucx', address));
} finally {
  rmSync(project, { recursive: true, force: true });
}

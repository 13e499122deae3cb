/**
 * Prepares a fresh machine: system packages, npm packages, the native addon, the TypeScript build.
 * Plain Node, no dependency. It does only what is missing; with nothing missing it takes well under a second.
 *
 *   node scripts/bootstrap.mjs [--quiet] [--with-tests]
 *
 * --quiet prints only what had to be done; --with-tests also asks for what the tests need.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const stamps = join(root, '.bootstrap');
const quiet = process.argv.includes('--quiet');
const withTests = process.argv.includes('--with-tests');
const nodeVersionMin = [20, 17];
const outputTailLines = 40;

/** What the build needs: how to see that it is there, and the Debian package that brings it. */
const toolchain = [
  { package: 'g++', present: () => onPath('g++') },
  { package: 'make', present: () => onPath('make') },
  { package: 'cmake', present: () => onPath('cmake') },
  { package: 'pkg-config', present: () => onPath('pkg-config') },
  { package: 'libuv1-dev', present: hasUv },
  // Without it token batches travel over gRPC.
  { package: 'libucx-dev', present: hasUcx, optional: true },
  // Without it rows that UCX would carry between hosts travel over gRPC where they are to be encrypted.
  { package: 'libssl-dev', present: hasOpenssl, optional: true },
];
/**
 * What the tests need: GoogleTest; openssl for certificates; promtool, without which the metrics go unchecked; tcpdump, without
 * which nobody looks at what the wire shows; Chromium, without which nobody looks at the console; etcd, without which
 * coordinators share no lease in it; curl.
 */
const testPackages = [
  { package: 'libgtest-dev', present: () => header('gtest/gtest.h') },
  { package: 'openssl', present: () => onPath('openssl') },
  { package: 'curl', present: () => onPath('curl'), optional: true },
  { package: 'tcpdump', present: () => onPath('tcpdump'), optional: true },
  { package: 'prometheus', present: () => onPath('promtool'), optional: true },
  { package: 'chromium', present: () => onPath('chromium'), optional: true },
  { package: 'etcd-server', present: () => onPath('etcd'), optional: true },
];

function hasUcx() {
  return header('ucp/api/ucp.h');
}

function hasOpenssl() {
  return header('openssl/ssl.h');
}

/** Most installations of Node have the header of its event loop. */
function hasUv() {
  return existsSync(join(dirname(process.execPath), '../include/node/uv.h')) || header('uv.h');
}

/** The CUDA compiler, with which the addon gets its CUDA backend; undefined if there is none. */
function cudaCompiler() {
  return process.env.CUDACXX || findOnPath('nvcc');
}

function onPath(command) {
  return findOnPath(command) !== undefined;
}

function findOnPath(command) {
  const paths = (process.env.PATH ?? '').split(delimiter).map((directory) => join(directory, command));
  return paths.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function header(path) {
  const directories = ['/usr/include', '/usr/local/include', ...(process.env.CPATH ?? '').split(delimiter)];
  return directories.some((directory) => directory !== '' && existsSync(join(directory, path)));
}

/** Ends the run with the reason. */
function fail(message) {
  process.stderr.write(`bootstrap: ${message}\n`);
  process.exit(1);
}

function run(command, args, environment = {}) {
  return spawnSync(command, args, {
    cwd: root,
    env: { ...process.env, ...environment },
    encoding: 'utf8',
    maxBuffer: 256 * 1024 * 1024,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

function runOrFail(command, args, environment) {
  const result = run(command, args, environment);
  if (result.status === 0) return;
  const output = `${result.stdout ?? ''}${result.stderr ?? ''}${result.error?.message ?? ''}`.trimEnd();
  process.stderr.write(`failed\n${output.split('\n').slice(-outputTailLines).join('\n')}\n`);
  fail(`\`${command} ${args.join(' ')}\` failed (exit status ${result.status ?? result.signal})`);
}

/** One line per step: what is done, and how long it took. */
function step(title, work) {
  const start = performance.now();
  process.stderr.write(`bootstrap: ${title} … `);
  work();
  process.stderr.write(`${((performance.now() - start) / 1000).toFixed(1)} s\n`);
}

function present(what) {
  if (!quiet) process.stderr.write(`bootstrap: ${what}: present\n`);
}

function filesUnder(directory, wanted, skipped = []) {
  if (!existsSync(join(root, directory))) return [];
  return readdirSync(join(root, directory), { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(directory, entry.name);
      if (entry.isDirectory()) {
        return skipped.some((pattern) => pattern.test(path)) ? [] : filesUnder(path, wanted, skipped);
      }
      return wanted.test(entry.name) ? [path] : [];
    });
}

function hashOf(paths) {
  const hash = createHash('sha256');
  for (const path of paths)
    hash
      .update(path)
      .update('\0')
      .update(readFileSync(join(root, path)));
  return hash.digest('hex');
}

function stampEquals(name, value) {
  const path = join(stamps, name);
  return existsSync(path) && readFileSync(path, 'utf8') === value;
}

function writeStamp(name, value) {
  mkdirSync(stamps, { recursive: true });
  writeFileSync(join(stamps, name), value);
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  const [majorMin, minorMin] = nodeVersionMin;
  if (major < majorMin || (major === majorMin && minor < minorMin)) {
    fail(`Node ${process.versions.node} is too old; ${nodeVersionMin.join('.')} or newer is needed`);
  }
  present(`Node ${process.versions.node}`);
}

/** Installs Debian packages where it may; otherwise tells the command to type, and ends if the build cannot do without. */
function installPackages(wanted) {
  const missing = wanted.filter((item) => !item.present());
  if (missing.length === 0)
    return present(`system packages (${wanted.map((item) => item.package).join(' ')})`);
  const names = missing.map((item) => item.package);
  const apt = aptGet();
  if (apt === null) {
    const command = `sudo apt-get update && sudo apt-get install -y ${names.join(' ')}`;
    const text = `missing and not mine to install: ${names.join(' ')}; on Debian or Ubuntu type: ${command}`;
    if (missing.some((item) => !item.optional)) fail(text);
    process.stderr.write(`bootstrap: ${text} (going on without)\n`);
    return;
  }
  const environment = { DEBIAN_FRONTEND: 'noninteractive' };
  const install = ['install', '-y', '--no-install-recommends', ...names];
  step(`installing ${names.join(' ')}`, () => {
    // Package lists may be old or absent; they are fetched only if the first try fails.
    if (run(apt[0], [...apt.slice(1), ...install], environment).status === 0) return;
    run(apt[0], [...apt.slice(1), 'update'], environment);
    // A machine without a network goes on without what it can do without.
    const needed = missing.some((item) => !item.optional);
    (needed ? runOrFail : run)(apt[0], [...apt.slice(1), ...install], environment);
  });
}

/** The command that may install packages without asking for a password, or null. */
function aptGet() {
  if (!onPath('apt-get')) return null;
  if (process.getuid?.() === 0) return ['apt-get'];
  const maySudo = onPath('sudo') && run('sudo', ['-n', 'true']).status === 0;
  return maySudo ? ['sudo', '-n', 'DEBIAN_FRONTEND=noninteractive', 'apt-get'] : null;
}

/** True if every package of the lock file is installed in its version; packages for other platforms may be absent. */
function packagesMatchLock() {
  const installedPath = join(root, 'node_modules', '.package-lock.json');
  if (!existsSync(installedPath)) return false;
  const installed = JSON.parse(readFileSync(installedPath, 'utf8')).packages;
  const locked = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages;
  return Object.entries(locked).every(([path, entry]) => {
    if (path === '') return true;
    return installed[path] === undefined
      ? entry.optional === true
      : installed[path].version === entry.version;
  });
}

function ensureNpmPackages() {
  if (packagesMatchLock()) return present('npm packages');
  step('npm ci', () => runOrFail('npm', ['ci', '--include=dev', '--no-audit', '--no-fund']));
}

/** What the addon is built with beside its own sources. */
function nativeLibraries() {
  return `${hasUcx() ? 'ucx' : 'no ucx'}, ${hasOpenssl() ? 'openssl' : 'no openssl'}, ${cudaCompiler() ?? 'no cuda'}, ${root}`;
}

function ensureNative() {
  const sources = filesUnder('native', /\.(cc|cu|h|txt|cmake)$/, [
    /^native\/build/,
    /^native\/(test|bench)$/,
  ]);
  const build = join(root, 'native', 'build');
  const hash = () => `${hashOf(sources)} ${nativeLibraries()}`;
  if (existsSync(join(build, 'Release', 'switchyard.node')) && stampEquals('native', hash())) {
    return present('native addon');
  }
  installPackages(toolchain);
  // A build that was configured with other libraries, or elsewhere and then copied, stays as it was, so that one is made anew.
  if (!stampEquals('native-libraries', nativeLibraries())) rmSync(build, { recursive: true, force: true });
  writeStamp('native-libraries', nativeLibraries());
  const cuda = cudaCompiler() === undefined ? 'OFF' : 'ON';
  const cmakeJs = [join('node_modules', 'cmake-js', 'bin', 'cmake-js'), 'compile', '--config', 'Release'];
  const folders = ['--directory', 'native', '--out', join('native', 'build')];
  // The tests, which npm test builds there too, are not made for who only wants the addon.
  const options = [`--CDSWITCHYARD_CUDA=${cuda}`, '--CDSWITCHYARD_TESTS=OFF'];
  step('native build', () =>
    runOrFail(process.execPath, [...cmakeJs, ...folders, ...options], {
      CMAKE_BUILD_PARALLEL_LEVEL: process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? String(availableParallelism()),
    }),
  );
  writeStamp('native', hash());
}

function ensureTypescript() {
  const sources = ['services', 'native', 'bench', 'proto', 'console'].flatMap((directory) =>
    filesUnder(directory, /\.(tsx?|proto|html|css|svg)$/, [/^services\/common\/generated/, /^native\/build/]),
  );
  const settings = [
    'tsconfig.json',
    'tsconfig.build.json',
    'vite.config.ts',
    'console/tsconfig.json',
    'package-lock.json',
  ];
  const hash = hashOf([...sources, ...settings]);
  const outputs = ['dist/bin', 'dist/console', 'services/common/generated'];
  const built = outputs.every((path) => existsSync(join(root, path)));
  if (built && stampEquals('typescript', hash)) return present('TypeScript build');
  step('TypeScript build', () => runOrFail('npm', ['run', '--silent', 'build']));
  writeStamp('typescript', hash);
}

checkNode();
ensureNpmPackages();
ensureNative();
if (withTests) installPackages(testPackages);
ensureTypescript();

/**
 * Everything that is checked: format and lint, types, the native tests, the Jest tests. With arguments only Jest
 * runs, with these arguments: npm test -- test/cli
 * The last line counts: N passed, N failed.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const scratch = mkdtempSync(join(tmpdir(), 'switchyard-test-'));
const jestArguments = process.argv.slice(2);
const total = { passed: 0, failed: 0 };

function run(command, args, environment = {}) {
  const { status } = spawnSync(command, args, {
    cwd: root,
    env: { ...process.env, ...environment },
    stdio: 'inherit',
  });
  return status === 0;
}

function add(name, passed, failed) {
  total.passed += passed;
  total.failed += failed;
  process.stdout.write(`== ${name}: ${passed} passed, ${failed} failed ==\n`);
}

function check(name, command, args) {
  const passed = run(command, args);
  add(name, passed ? 1 : 0, passed ? 0 : 1);
}

/** A program that ends without its report has crashed: that is one failure, whatever had passed before. */
function readReport(path, counts) {
  try {
    return counts(JSON.parse(readFileSync(path, 'utf8')));
  } catch {
    return { passed: 0, failed: 1 };
  }
}

function nativeTests() {
  // Where the addon was built: the library that both are made of is compiled once.
  const build = 'native/build';
  const configured = ['-S', 'native', '-B', build, '-DSWITCHYARD_TESTS=ON'];
  const parallel = process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? String(availableParallelism());
  if (!run('cmake', configured) || !run('cmake', ['--build', build, '--parallel', parallel])) {
    return add('native build', 0, 1);
  }
  const listed = spawnSync('ctest', ['--test-dir', build, '--show-only=json-v1'], {
    cwd: root,
    encoding: 'utf8',
  });
  for (const { name, command } of JSON.parse(listed.stdout).tests) {
    const report = join(scratch, `${name}.json`);
    const [program, ...args] = command;
    const clean = run(program, [...args, `--gtest_output=json:${report}`, '--gtest_brief=1']);
    const { passed, failed } = readReport(report, ({ tests, failures, errors }) => ({
      passed: tests - failures - errors,
      failed: failures + errors,
    }));
    add(name, passed, clean || failed > 0 ? failed : 1);
  }
}

function jestTests() {
  const report = join(scratch, 'jest.json');
  const jest = join('node_modules', 'jest', 'bin', 'jest.js');
  const clean = run(
    process.execPath,
    ['--experimental-vm-modules', jest, '--json', `--outputFile=${report}`, ...jestArguments],
    { NODE_NO_WARNINGS: '1' },
  );
  const { passed, failed } = readReport(report, (result) => ({
    passed: result.numPassedTests,
    failed: result.numFailedTests + result.numRuntimeErrorTestSuites,
  }));
  add('jest', passed, clean || failed > 0 ? failed : 1);
}

try {
  if (jestArguments.length === 0) {
    check('lint', process.execPath, [
      join('node_modules', '@biomejs', 'biome', 'bin', 'biome'),
      'check',
      '.',
    ]);
    for (const [name, project] of [
      ['types', '.'],
      ['types of the console', 'console'],
    ])
      check(name, process.execPath, [
        join('node_modules', 'typescript', 'bin', 'tsc'),
        '--noEmit',
        '-p',
        project,
      ]);
    nativeTests();
  }
  jestTests();
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
process.stdout.write(`${total.passed} passed, ${total.failed} failed\n`);
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);

import { availableParallelism } from 'node:os';

const { native } = await import('./dist/native/index.js');

/**
 * The tests whose outcome a transport could change, as regular expressions of paths: they run over each transport that the
 * addon has. Credentials travel over gRPC alone, and so does what starts, ends and moves a cluster; numbers are the kernels'; tests
 * of what clients send, and of memory that hosts share, bring their ways themselves, and counts of series, and garbage, have no way.
 */
const overEachTransport = [
  '/test/e2e/(?!access|backends|bad-|cli|client-transport|console|demo|garbage|hosts-ipc|numbers|operate|plan|tls|trust|up|wide-)',
];
const transports = native.ucx === null ? ['grpc'] : ['grpc', 'ucx'];
if (native.ucx === null)
  process.stderr.write('\n*** NOT TESTED: the addon is built without UCX, so nothing runs over it. ***\n\n');

/** Tests run as ES modules; the source is TypeScript and swc strips the types. */
const common = {
  testEnvironment: 'node',
  // Processes of a cluster may end after their test file; what they still say then is no leak to warn of.
  testEnvironmentOptions: { globalsCleanup: 'off' },
  extensionsToTreatAsEsm: ['.ts'],
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      { jsc: { target: 'es2022', parser: { syntax: 'typescript' } }, module: { type: 'es6' } },
    ],
  },
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1' },
  modulePathIgnorePatterns: ['<rootDir>/dist/', '<rootDir>/native/build'],
};

export default {
  // What takes so long hangs. How fast the machine is decides nothing.
  testTimeout: 300_000,
  // The addon has one arena and one pool per process: every test file gets a process of its own, as any limit ends it.
  workerIdleMemoryLimit: '1MB',
  // Such a process may still be starting when the last test has ended.
  workerGracefulExitTimeout: 30_000,
  // Much of the time of tests is waiting: for processes, leases, deadlines. More than a dozen of them gain nothing.
  maxWorkers: Math.min(12, availableParallelism() * 2),
  projects: [
    {
      ...common,
      displayName: 'once',
      testMatch: ['<rootDir>/test/**/*.test.ts'],
      testPathIgnorePatterns: ['/node_modules/', ...overEachTransport],
    },
    ...transports.map((transport) => ({
      ...common,
      displayName: transport,
      testRegex: overEachTransport.map((path) => `${path}.*\\.test\\.ts$`),
      globals: { transport },
      setupFiles: ['<rootDir>/test/support/over-transport.ts'],
    })),
  ],
};

// What native/index.ts sets before UCX is loaded, which a test file cannot: Jest gives it a copy of the environment.
process.env.UCX_MEM_EVENTS ??= 'n';
process.env.UCX_HANDLE_ERRORS ??= 'none';

/** Tests run as ES modules; the source is TypeScript and swc strips the types. */
export default {
  testEnvironment: 'node',
  // Processes of a cluster may end after their test file; what they still say then is no leak to warn of.
  testEnvironmentOptions: { globalsCleanup: 'off' },
  extensionsToTreatAsEsm: ['.ts'],
  // The addon has one arena and one pool per process: every test file gets a process of its own, as any limit ends it.
  workerIdleMemoryLimit: '1MB',
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      { jsc: { target: 'es2022', parser: { syntax: 'typescript' } }, module: { type: 'es6' } },
    ],
  },
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1' },
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  modulePathIgnorePatterns: ['<rootDir>/dist/', '<rootDir>/native/build'],
};

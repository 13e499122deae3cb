/**
 * Runs before each test file of a Jest project that is bound to one transport (jest.config.js). The processes of a
 * cluster read it from the environment as they read any setting; services in this process are told by their test.
 */
process.env.SWITCHYARD_TRANSPORT = (globalThis as unknown as { transport: string }).transport;

import { expect, test } from '@jest/globals';
import { LocalProcess } from '../../services/cli/local-process.js';

const start = (flags: Record<string, string | number>) =>
  new LocalProcess('coordinator', 'coordinator', { port: 0, metricsPort: 0, ...flags }, {}, () => {});
const killed = { code: null, signal: 'SIGTERM' } as const;

test('a process that has said what is wrong has failed, although a signal ends it before it has ended by itself', async () => {
  const process = start({ model: '/nowhere' });
  expect(await process.exited).toEqual({ code: 2, signal: null });
  expect(process.failed(killed)).toBe(true);
  expect(process.exitError(killed)).toMatchObject({ code: 'MODEL_INVALID' });
});

test('a process that is ended has not', async () => {
  const process = start({ preset: 'tiny', workers: 1 });
  await process.listening;
  const exit = await process.stop(10_000);
  expect(process.failed(exit)).toBe(false);
  expect(process.failed(killed)).toBe(false);
});

import { expect, test } from '@jest/globals';
import fc from 'fast-check';
import { loadConfig } from '../../services/common/config.js';
import { defaultNodeName, isNodeName } from '../../services/common/node-name.js';
import { coordinatorSchema } from '../../services/coordinator/config.js';
import { routerSchema } from '../../services/router/config.js';
import { workerSchema } from '../../services/worker/config.js';

test('a default name tells role and machine, and is another one each time', () => {
  expect(defaultNodeName('worker', 'node-a.example.org')).toMatch(/^worker-node-a-[0-9a-f]{8}$/);
  const names = Array.from({ length: 1000 }, () => defaultNodeName('router', 'node-a'));
  expect(new Set(names).size).toBe(1000);
});

test('a default name is one that the cluster takes, whatever the machine is called', () => {
  const host = fc.oneof(fc.string(), fc.string({ unit: 'grapheme', maxLength: 100 }), fc.domain());
  fc.assert(
    fc.property(host, (name) => {
      const given = defaultNodeName('worker', name);
      expect(isNodeName(given)).toBe(true);
      expect(given).toMatch(/^worker-.*[0-9a-f]{8}$/);
    }),
  );
  for (const odd of ['', '.', '-', '___', 'Küche', 'x'.repeat(255)])
    expect(isNodeName(defaultNodeName('router', odd))).toBe(true);
});

test.each([
  ['a coordinator', coordinatorSchema],
  ['a router', routerSchema],
  ['a worker', workerSchema],
])('the configuration of %s takes no name that the cluster would refuse', (_, schema) => {
  for (const name of ['', '-a', '.a', 'a b', 'a/b', 'Küche', 'x'.repeat(64)]) {
    const load = () => loadConfig(schema as typeof workerSchema, { env: {}, flags: { name } });
    expect(load).toThrow(
      expect.objectContaining({
        code: 'CONFIG_INVALID',
        message: expect.stringContaining(`--name is ${JSON.stringify(name)}; allowed: letters, digits`),
      }),
    );
  }
});

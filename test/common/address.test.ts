import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import type { z } from 'zod';
import { SwitchyardClient } from '../../services/client/index.js';
import { isHost, parseAddress } from '../../services/common/address.js';
import { loadConfig } from '../../services/common/config.js';
import { quoted } from '../../services/common/errors.js';
import { coordinatorSchema } from '../../services/coordinator/config.js';
import { routerSchema } from '../../services/router/config.js';
import { workerSchema } from '../../services/worker/config.js';

const wrongAddresses = [
  'http://node-a:7070',
  'tcp://10.0.0.1:7070',
  'dns:///node-a:7070',
  'unix:/run/switchyard',
  'node-a',
  'node-a:',
  ':7070',
  ':abc',
  '7070',
  'node-a:abc',
  'node-a:0',
  'node-a:99999',
  ':99999',
  'node-a:-1',
  'node-a:7070/path',
  'node-a:7070,node-b:7070',
  ' node-a:7070',
  'node-a:7070 ',
  'node a:7070',
  'user@node-a:7070',
  '::1:7070',
  'fd00::1',
  '[::1]',
  '[::1]:',
  '[node-a]:7070',
  '[10.0.0.1]:7070',
  '10.0.0.256:7070',
  '10.1:7070',
  `${'a'.repeat(254)}:7070`,
];
const wrongHosts = [
  'node-a:7070',
  'http://node-a',
  'node-a/path',
  '[::1]',
  ' node-a',
  'node a',
  '',
  '10.0.0.256',
];

describe('an address', () => {
  test.each([
    'node-a:7070',
    'switchyard_coordinator.cluster.local.:1',
    '10.0.0.1:65535',
    '[::1]:7070',
    '[fe80::1%eth0]:80',
  ])('may be %j', (address) => {
    expect(parseAddress(address)).toBe(address);
  });

  test.each(wrongAddresses)('is not %j', (address) => {
    expect(() => parseAddress(address, 'peer')).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining(`peer is ${quoted(address)}; allowed: host:port without`),
        details: expect.objectContaining({ field: 'peer' }),
      }),
    );
  });

  test('joins any host and any port, and nothing else', () => {
    const host = fc.oneof(
      fc.domain(),
      fc.ipV4(),
      fc.ipV6().map((ip) => `[${ip}]`),
    );
    fc.assert(
      fc.property(host, fc.integer({ min: 1, max: 65_535 }), (name, port) => {
        expect(parseAddress(`${name}:${port}`)).toBe(`${name}:${port}`);
        expect(() => parseAddress(`${name}:${port + 65_535}`)).toThrow('65535');
        expect(() => parseAddress(name)).toThrow('host:port');
      }),
    );
  });

  test('that is wrong ends a connect of the SDK at once, by its name', async () => {
    for (const address of [...wrongAddresses, '', undefined as unknown as string]) {
      await expect(SwitchyardClient.connect(address)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(/^address is /),
      });
    }
  });
});

describe('the configuration', () => {
  test.each([
    ['a router', routerSchema],
    ['a worker', workerSchema],
  ])('of %s takes no wrong address of the coordinator', (_, schema) => {
    // Nodes take lists, with spaces around addresses.
    const isRightInLists = (text: string) => text.includes(',') || text !== text.trim();
    for (const coordinator of wrongAddresses.filter((text) => !isRightInLists(text))) {
      expect(() =>
        loadConfig<z.ZodRawShape>(schema, { env: { SWITCHYARD_COORDINATOR: coordinator } }),
      ).toThrow(
        expect.objectContaining({
          code: 'CONFIG_INVALID',
          message: expect.stringContaining(`SWITCHYARD_COORDINATOR is ${JSON.stringify(coordinator)}`),
        }),
      );
    }
  });

  test.each([
    ['a coordinator', coordinatorSchema],
    ['a router', routerSchema],
    ['a worker', workerSchema],
  ])('of %s takes no wrong host to advertise', (_, schema) => {
    for (const advertiseHost of [...wrongHosts, '0.0.0.0', '::']) {
      expect(() => loadConfig<z.ZodRawShape>(schema, { flags: { advertiseHost } })).toThrow(
        expect.objectContaining({
          code: 'CONFIG_INVALID',
          message: expect.stringContaining(`--advertise-host is ${JSON.stringify(advertiseHost)}`),
        }),
      );
    }
    for (const advertiseHost of ['node-a', '10.0.0.1', 'fd00::1']) {
      expect(loadConfig<z.ZodRawShape>(schema, { flags: { advertiseHost } }).advertiseHost).toBe(
        advertiseHost,
      );
    }
  });
});

test.each(wrongHosts)('%j is no host', (host) => {
  expect(isHost(host)).toBe(false);
});

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from '@jest/globals';
import { z } from 'zod';
import { batchFields } from '../../services/cli/batch-options.js';
import { clusterFields } from '../../services/cli/cluster-options.js';
import { connectionFields } from '../../services/cli/connection.js';
import { checkOptions } from '../../services/client/check-options.js';
import { loadConfig } from '../../services/common/config.js';
import { asSwitchyardError, type SwitchyardError } from '../../services/common/errors.js';
import { checkBy } from '../../services/common/schema-issue.js';
import { coordinatorSchema } from '../../services/coordinator/config.js';
import { parseTopology } from '../../services/coordinator/topology.js';
import { families } from '../../services/model/families/index.js';
import { parseJsonFile } from '../../services/model/json-file.js';
import { parseModelSource } from '../../services/model/load.js';
import { presets } from '../../services/model/synthetic.js';
import { routerSchema } from '../../services/router/config.js';
import { workerSchema } from '../../services/worker/config.js';

const directory = mkdtempSync(join(tmpdir(), 'switchyard-schema-'));
afterAll(() => rmSync(directory, { recursive: true }));

const wrong = [null, true, -1, 0.5, 1e300, '', 'no such thing', [], [null], {}, { a: 1 }];
/** What zod says for itself, and what is said when nobody knows better. */
const zodWords = /\b(invalid|expected|received|unrecognized|too (small|big)|another value)\b/i;

function refusal(work: () => unknown): SwitchyardError | null {
  try {
    work();
    return null;
  } catch (error) {
    return asSwitchyardError(error);
  }
}

function expectOwnWords(work: () => unknown): void {
  const error = refusal(work);
  if (error === null) return;
  expect(error.code).toMatch(/^(CONFIG|MODEL)_INVALID$|^INVALID_ARGUMENT$/);
  expect(error.message.replace(/^.*; allowed: /s, '')).not.toMatch(zodWords);
}

test('of an object that has no keys it is told that there are none', () => {
  expect(checkBy(z.strictObject({}), { worker: 'w' }).issue).toMatchObject({
    key: 'worker',
    allowed: 'there is no such key; there are none',
  });
});

describe('what is allowed is told in words of this product:', () => {
  const schemas: [string, z.ZodObject][] = [
    ['coordinator', coordinatorSchema],
    ['router', routerSchema],
    ['worker', workerSchema],
    ['commands', z.object({ ...connectionFields, ...batchFields, ...clusterFields })],
  ];
  test.each(schemas)('every key of the configuration of %s', (_, schema) => {
    for (const key of Object.keys(schema.shape))
      for (const value of wrong) expectOwnWords(() => loadConfig(schema, { flags: { [key]: value } }));
  });

  test('a configuration file', () => {
    const path = join(directory, 'config.yaml');
    for (const value of wrong) {
      for (const content of [value, { worker: value }, { worker: { port: value } }]) {
        writeFileSync(path, JSON.stringify(content));
        expectOwnWords(() => loadConfig(workerSchema, { file: { path, section: 'worker' } }));
      }
    }
  });

  test('a topology file', () => {
    const host = { name: 'a', devices: ['cpu'] };
    const link = { from: 'a', to: 'b', bandwidth: 1e9 };
    for (const value of wrong) {
      const hosts = [value, [value], [{ ...host, name: value }], [{ ...host, devices: value }]];
      const links = [value, [value], ...Object.keys(link).map((key) => [{ ...link, [key]: value }])];
      for (const content of [value, ...hosts.map((all) => ({ hosts: all }))])
        expectOwnWords(() => parseTopology(JSON.stringify(content), 'x.yaml'));
      for (const all of [...links, [{ ...link, latencyMicroseconds: value }]])
        expectOwnWords(() => parseTopology(JSON.stringify({ hosts: [host], links: all }), 'x.yaml'));
    }
  });

  test('a model source and its overrides', () => {
    const { model: spec } = presets.tiny;
    for (const value of wrong) {
      const sources = [
        value,
        { kind: value },
        { kind: 'synthetic', spec: value },
        { kind: 'checkpoint', directory: value },
      ];
      const specs = Object.keys(spec).map((key) => ({ kind: 'synthetic', spec: { ...spec, [key]: value } }));
      for (const source of [...sources, ...specs]) expectOwnWords(() => parseModelSource(source));
    }
  });

  test.each(families.map(({ name, config }) => [name, config] as const))('config.json of %s', (_, config) => {
    for (const value of wrong) {
      expectOwnWords(() => parseJsonFile('config.json', value, config));
      expectOwnWords(() => parseJsonFile('config.json', { mlp_only_layers: value }, config));
    }
  });

  test('options of the SDK', () => {
    for (const call of ['connect', 'forward', 'session', 'sessionBatch'] as const) {
      for (const value of wrong) {
        expectOwnWords(() => checkOptions(call, value));
        for (const key of ['token', 'timeoutMs', 'layers', 'given', 'transport', 'signal', 'chunkTokens'])
          expectOwnWords(() => checkOptions(call, { [key]: value }));
      }
    }
  });
});

test.each<[string, () => unknown, string]>([
  [
    'a JSON file',
    () => parseJsonFile('config.json', [1], families[0]!.config),
    'config.json: content is [1]; allowed: an object',
  ],
  ['a model source', () => parseModelSource('[1]'), 'model is [1]; allowed: an object'],
  [
    'a topology',
    () => parseTopology('[1]', 'x.yaml'),
    'x.yaml: topology is [1]; allowed: a mapping with hosts and links',
  ],
  [
    'an unknown key',
    () => checkOptions('session', { router: 2 }),
    'router is 2; allowed: there is no such key; there are transport, routers',
  ],
])('%s that is no object says so', (_, work, message) => {
  expect(refusal(work)?.message).toBe(message);
});

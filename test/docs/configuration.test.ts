import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import type { ZodType } from 'zod';
import { packageRoot } from '../../native/locate.js';
import { batchFields, batchNamesInEnvironment } from '../../services/cli/batch-options.js';
import { planFields, planNamesInEnvironment } from '../../services/cli/plan-input.js';
import { simulationNamesInEnvironment } from '../../services/cli/simulate.js';
import { memoryBound, usableCores } from '../../services/common/machine.js';
import { coordinatorSchema } from '../../services/coordinator/config.js';
import { presets } from '../../services/model/synthetic.js';
import { routerSchema } from '../../services/router/config.js';
import { workerSchema } from '../../services/worker/config.js';

const page = readFileSync(join(packageRoot(), 'docs', 'CONFIGURATION.md'), 'utf8');

/** Key to default of every table row under a heading. */
function keysOf(heading: string): Map<string, string> {
  const section = page.split(/^## /m).find((part) => part.startsWith(`${heading}\n`));
  if (section === undefined) throw new Error(`no section "${heading}"`);
  return new Map(
    [...section.matchAll(/^\| `([A-Za-z]+)` \| ([^|]+) \| [^|]+ \|$/gm)].map(([, key, value]) => [
      key!,
      value!,
    ]),
  );
}

const server = keysOf('Keys of every server');
const model = keysOf('Keys of the model');
const routing = keysOf('Keys of routing');

/** What makes the defaults less is told elsewhere. */
const large = memoryBound().value >= 2 ** 33;

/** Defaults that the page gives in words. */
const inWords: Readonly<Record<string, unknown>> = {
  none: null,
  'the number of cores': usableCores(),
  '`512MiB`, less in a small memory': large ? 512 * 2 ** 20 : expect.any(Number),
  '`2GiB`, less in a small memory': large ? 2 ** 31 : expect.any(Number),
  "the machine's name": hostname(),
  "`router-`, the machine's name and chance": expect.stringMatching(/^router-(.+-)?[0-9a-f]{8}$/),
  "`worker-`, the machine's name and chance": expect.stringMatching(/^worker-(.+-)?[0-9a-f]{8}$/),
};

const services = [
  {
    name: 'coordinator',
    schema: coordinatorSchema,
    tables: [server, model, routing, keysOf('Keys of the coordinator')],
  },
  { name: 'router', schema: routerSchema, tables: [server, routing, keysOf('Keys of the router')] },
  { name: 'worker', schema: workerSchema, tables: [server, keysOf('Keys of the worker')] },
];

describe.each(services)('CONFIGURATION.md on the $name', ({ schema, tables }) => {
  const documented = new Map(tables.flatMap((table) => [...table]));

  test('lists every key of the schema, and no other', () => {
    expect([...documented.keys()].sort()).toEqual(Object.keys(schema.shape).sort());
  });

  test.each([...documented])('%s has the default %s', (key, shown) => {
    const field = (schema.shape as Record<string, ZodType>)[key]!;
    const expected = shown in inWords ? inWords[shown] : field.parse(shown.replaceAll('`', ''));
    expect(field.parse(undefined)).toEqual(expected);
  });
});

describe('keys of commands that servers have too', () => {
  const commands = [
    { names: ['forward', 'run', 'demo'], fields: batchFields, own: batchNamesInEnvironment },
    { names: ['plan', 'rebalance'], fields: planFields, own: planNamesInEnvironment },
    { names: ['simulate'], fields: { seed: null, seeds: null }, own: simulationNamesInEnvironment },
  ];
  /** They mean the same, or do the same, to the commands above. */
  const alike = ['chunkTokens', 'feedback', 'transport'];

  test('have names of their own in the environment, unless they mean the same', () => {
    const ofServers = new Set(services.flatMap(({ schema }) => Object.keys(schema.shape)));
    for (const { fields, own } of commands) {
      const shared = Object.keys(fields).filter((key) => ofServers.has(key) && !alike.includes(key));
      expect(shared.sort()).toEqual(Object.keys(own).sort());
      for (const name of Object.values(own)) expect(ofServers).not.toContain(name);
    }
  });

  test('are listed with them in CONFIGURATION.md', () => {
    const listed = [...page.matchAll(/^\| (`.+`) \| `(\w+)` \| `SWITCHYARD_([A-Z_]+)` \|$/gm)];
    const expected = commands.flatMap(({ names, own }) =>
      Object.entries(own).map(([key, name]) => [
        names.map((command) => `\`${command}\``).join(', '),
        key,
        name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase(),
      ]),
    );
    const sorted = (rows: string[][]) => rows.map((row) => row.join(' ')).sort();
    expect(sorted(listed.map(([, ...cells]) => cells))).toEqual(sorted(expected));
  });
});

test('CONFIGURATION.md shows the sizes of every preset', () => {
  const rows = [...page.matchAll(/^\| `([a-z]+)` \| (\d.*) \|$/gm)].map(
    ([, name, cells]) => `${name} | ${cells}`,
  );
  const expected = Object.entries(presets).map(([name, { model, sequences, length }]) =>
    [
      name,
      model.hidden,
      model.ffn,
      model.experts,
      model.topK,
      model.layers,
      model.activation,
      `${sequences} × ${length.toLocaleString('en-US')} tokens`,
    ].join(' | '),
  );
  expect(rows).toEqual(expected);
});

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { parse } from 'yaml';
import type { z } from 'zod';
import { packageRoot } from '../../native/locate.js';
import { loadConfig } from '../../services/common/config.js';
import { coordinatorSchema } from '../../services/coordinator/config.js';
import { routerSchema } from '../../services/router/config.js';
import { workerSchema } from '../../services/worker/config.js';

interface Container {
  hostname: string;
  command: string;
  stop_grace_period: string;
  ports?: string[];
}

const path = join(packageRoot(), 'docker-compose.yml');
const { services } = parse(readFileSync(path, 'utf8'), { merge: true }) as {
  services: Record<string, Container>;
};
const containers = Object.entries(services);
const schemas = { coordinator: coordinatorSchema, router: routerSchema, worker: workerSchema };

/** The configuration that the container's command gives, as the command itself would read it. */
function configOf({ command }: Container): { role: string; config: Record<string, unknown> } {
  const [role = '', ...words] = command.replace(/\$\{\w+:-(\w+)\}/g, '$1').split(' ');
  const flags: Record<string, string> = {};
  for (let at = 0; at < words.length; at += 2) {
    const key = words[at]!.replace(/^--/, '').replace(/-./g, (letter) => letter[1]!.toUpperCase());
    flags[key] = words[at + 1]!;
  }
  const schema = schemas[role as keyof typeof schemas] as unknown as z.ZodObject;
  return { role, config: loadConfig(schema, { flags }) };
}

const head = configOf(services.coordinator!).config;

describe.each(containers)('the container %s', (name, container) => {
  const { config } = configOf(container);

  test('is known to the others by the name that it advertises', () => {
    expect(container.hostname).toBe(name);
    expect(config).toMatchObject({ host: '0.0.0.0', advertiseHost: null });
  });

  test('has time to drain before Docker ends it', () => {
    const [, seconds] = /^(\d+)s$/.exec(container.stop_grace_period) ?? [];
    expect(Number(seconds) * 1000).toBeGreaterThanOrEqual(Number(config.drainMs) + 5_000);
  });
});

test('the workers of docker-compose.yml are as many as the coordinator waits for, and find it', () => {
  const workers = containers
    .map(([, container]) => configOf(container))
    .filter(({ role }) => role === 'worker');
  expect(workers).toHaveLength(Number(head.workers));
  for (const { config } of workers) expect(config.coordinator).toBe(`coordinator:${head.port}`);
  expect(new Set(workers.map(({ config }) => config.name)).size).toBe(workers.length);
});

test('clients on the host reach the ports of the coordinator', () => {
  expect(services.coordinator!.ports).toEqual([
    `127.0.0.1:${head.port}:${head.port}`,
    `127.0.0.1:${head.metricsPort}:${head.metricsPort}`,
  ]);
});

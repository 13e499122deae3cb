import { existsSync, readFileSync } from 'node:fs';
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
  healthcheck: { test: string[] };
  stop_grace_period: string;
  ports?: string[];
}

const path = join(packageRoot(), 'docker-compose.yml');
const { services } = parse(readFileSync(path, 'utf8'), { merge: true }) as {
  services: Record<string, Container>;
};
const containers = Object.entries(services);
const schemas = { coordinator: coordinatorSchema, router: routerSchema, worker: workerSchema };

/** Text of the compose file, where the environment sets nothing. */
function withDefaults(text: string): string {
  return text.replace(/\$\{\w+:-([^}]+)\}/g, '$1');
}

/** The configuration that the container's command gives, as the command itself would read it. */
function configOf({ command }: Container): { role: string; config: Record<string, unknown> } {
  const [role = '', ...words] = withDefaults(command).split(' ');
  const flags: Record<string, string | boolean> = {};
  for (const [at, word] of words.entries()) {
    const [, negated, name] = /^--(no-)?(.*)$/.exec(word) ?? [];
    if (name === undefined) continue;
    const key = name.replace(/-./g, (letter) => letter[1]!.toUpperCase());
    flags[key] = negated ? false : words[at + 1]!;
  }
  const schema = schemas[role as keyof typeof schemas] as unknown as z.ZodObject;
  return { role, config: loadConfig(schema, { flags }) };
}

const head = configOf(services.coordinator!).config;

describe.each(containers)('the container %s', (name, container) => {
  const { config } = configOf(container);

  test('is known to the others by the name that it advertises', () => {
    expect(container.hostname).toBe(name);
    // Only clients reach routers by name, and these are on the host.
    const advertiseHost = name === 'router' ? '127.0.0.1' : null;
    expect(config).toMatchObject({ host: '0.0.0.0', advertiseHost });
  });

  test('is asked for its health where it serves it', () => {
    expect(container.healthcheck.test.join(' ')).toContain(`http://127.0.0.1:${config.metricsPort}/readyz`);
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
  for (const { config } of workers) expect(config.coordinator).toEqual([`coordinator:${head.port}`]);
  expect(new Set(workers.map(({ config }) => config.name)).size).toBe(workers.length);
});

test('clients on the host reach coordinator and router, each by the port that it says it has', () => {
  const published = (name: string) => services[name]!.ports!.map(withDefaults);
  const router = configOf(services.router!).config;
  const local = (port: unknown) => `127.0.0.1:${port}:${port}`;
  expect(published('coordinator')).toEqual([local(head.port), local(head.metricsPort)]);
  expect(published('router')).toEqual([local(router.port)]);
  expect(router).toMatchObject({ coordinator: [`coordinator:${head.port}`], advertiseHost: '127.0.0.1' });
  expect(head.router).toBe(false);
});

describe('docker-compose.watch.yml', () => {
  const read = (file: string) => parse(readFileSync(join(packageRoot(), file), 'utf8'));
  const watching = read('docker-compose.watch.yml').services as Record<
    string,
    { volumes: string[]; ports: string[] }
  >;

  test('Prometheus scrapes every container of the cluster where it serves its metrics', () => {
    const [{ static_configs }] = read('deploy/prometheus/prometheus.yml').scrape_configs;
    expect(static_configs[0].targets).toEqual(
      containers.map(([name, container]) => `${name}:${configOf(container).config.metricsPort}`),
    );
  });

  test('and by https where they speak TLS', () => {
    const [plain] = read('deploy/prometheus/prometheus.yml').scrape_configs;
    const [{ scheme, tls_config, ...rest }] = read('deploy/prometheus/prometheus-tls.yml').scrape_configs;
    expect(rest).toEqual(plain);
    const { prometheus } = read('docker-compose.watch.tls.yml').services;
    expect(prometheus.environment).toEqual({ PROMETHEUS_CONFIG: 'prometheus-tls.yml' });
    expect(prometheus.volumes).toEqual([`./tls/ca.pem:${tls_config.ca_file}:ro`]);
    expect([scheme, tls_config.server_name]).toEqual(['https', containers[0]![0]]);
  });

  test.each(Object.entries(watching))(
    '%s mounts what there is, and is reached from this machine alone',
    (_, { volumes, ports }) => {
      for (const volume of volumes.filter((one) => one.startsWith('.')))
        expect(existsSync(join(packageRoot(), volume.split(':')[0]!))).toBe(true);
      for (const published of ports) expect(published).toMatch(/^127\.0\.0\.1:/);
    },
  );
});

test('docker-compose.tls.yml gives every container the settings of TLS', () => {
  const override = parse(readFileSync(join(packageRoot(), 'docker-compose.tls.yml'), 'utf8'), {
    merge: true,
  }) as {
    services: Record<string, { environment: Record<string, string>; volumes: string[] }>;
  };
  expect(Object.keys(override.services)).toEqual(Object.keys(services));
  for (const [name, { environment, volumes }] of Object.entries(override.services)) {
    const { role } = configOf(services[name]!);
    const schema = schemas[role as keyof typeof schemas] as unknown as z.ZodObject;
    const { tlsCa, tlsCert, tlsKey, tlsClientCa } = loadConfig(schema, { env: environment });
    const directory = volumes[0]!.split(':')[1]!;
    for (const file of [tlsCa, tlsCert, tlsKey, tlsClientCa]) expect(file).toContain(directory);
  }
});

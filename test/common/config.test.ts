import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { z } from 'zod';
import {
  addresses,
  type ConfigSources,
  humanBytes,
  humanCount,
  loadConfig,
  serverFields,
  toggle,
} from '../../services/common/config.js';
import { SwitchyardError } from '../../services/common/errors.js';
import { coordinatorSchema } from '../../services/coordinator/config.js';
import { routerSchema } from '../../services/router/config.js';
import { workerSchema } from '../../services/worker/config.js';

const schema = z.object({
  ...serverFields,
  maxRows: humanCount(1, 65536).default(4096),
  budgetBytes: humanBytes(1).default(512 * 2 ** 20),
  feedback: toggle().default(true),
  device: z.enum(['cpu', 'cuda']).default('cpu'),
});

let directory: string;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'switchyard-config-'));
});
afterAll(() => rmSync(directory, { recursive: true }));

function yaml(text: string): { path: string; section: 'worker' } {
  const path = join(directory, 'cluster.yaml');
  writeFileSync(path, text);
  return { path, section: 'worker' };
}

function errorOf(load: () => unknown): SwitchyardError {
  try {
    load();
  } catch (error) {
    if (error instanceof SwitchyardError) return error;
    throw error;
  }
  throw new Error('no error');
}

describe('loadConfig', () => {
  test('gives the defaults of the schema when nothing is set', () => {
    expect(loadConfig(schema, {})).toMatchObject({
      host: '127.0.0.1',
      port: 0,
      insecure: false,
      maxRows: 4096,
    });
  });

  test('prefers flags to the environment, the environment to the file, the file to defaults', () => {
    const file = yaml('worker: { port: 1, metricsPort: 1, maxRows: 1, budgetBytes: 1KiB }');
    const env = { SWITCHYARD_PORT: '2', SWITCHYARD_METRICS_PORT: '2' };
    expect(loadConfig(schema, { file, env, flags: { port: '3', maxRows: undefined } })).toMatchObject({
      port: 3,
      metricsPort: 2,
      maxRows: 1,
      budgetBytes: 1024,
      feedback: true,
    });
  });

  test('reads the section of its service only', () => {
    expect(loadConfig(schema, { file: yaml('router: { nonsense: 1 }') }).port).toBe(0);
  });

  const links = { SWITCHYARD_PORT: 'tcp://10.0.0.1:7070', SWITCHYARD_METRICS_PORT: 'udp://[fd00::1]:53' };
  const pod = {
    ...links,
    SWITCHYARD_NAME: '/pod/switchyard',
    SWITCHYARD_SERVICE_HOST: '10.0.0.1',
    SWITCHYARD_SERVICE_PORT: '7070',
    SWITCHYARD_SERVICE_PORT_GRPC: '7070',
    SWITCHYARD_PORT_7070_TCP: 'tcp://10.0.0.1:7070',
    SWITCHYARD_PORT_7070_TCP_ADDR: '10.0.0.1',
    SWITCHYARD_PORT_7070_TCP_PORT: '7070',
    SWITCHYARD_PORT_7070_TCP_PROTO: 'tcp',
    SWITCHYARD_COORDINATOR_PORT: 'tcp://10.0.0.2:7070',
    SWITCHYARD_ROUTER_SERVICE_HOST: '10.0.0.3',
  };

  test.each([
    ['coordinator', coordinatorSchema],
    ['router', routerSchema],
    ['worker', workerSchema],
  ] as const)('of a %s is not changed by what Kubernetes and Docker say of services', (_, service) => {
    const plain = loadConfig<z.ZodRawShape>(service, {});
    expect(loadConfig<z.ZodRawShape>(service, { env: pod })).toEqual(plain);
  });

  test('leaves a setting of the file alone when the environment describes a service', () => {
    const file = yaml('worker: { port: 1 }');
    expect(loadConfig(schema, { file, env: links }).port).toBe(1);
  });

  test.each([
    { env: { SWITCHYARD_PORT: 'tcp://10.0.0.1' } },
    { env: { SWITCHYARD_PORT: '10.0.0.1:7070' } },
    { env: { SWITCHYARD_MAX_ROWS: 'tcp://10.0.0.1:7070' } },
    { flags: { port: 'tcp://10.0.0.1:7070' } },
    { file: { path: '', section: 'worker' as const }, text: 'worker: { port: "tcp://10.0.0.1:7070" }' },
  ])('takes a service for a setting nowhere else: %j', ({ text, ...sources }) => {
    const file = text === undefined ? null : yaml(text);
    expect(errorOf(() => loadConfig(schema, { ...sources, file })).code).toBe('CONFIG_INVALID');
  });

  test.each([
    [
      '--max-rows',
      { flags: { maxRows: '-5' } },
      'maxRows',
      '"-5"',
      'a whole number such as 4096 or 4k from 1 to 65536',
    ],
    [
      '--max-rows',
      { flags: { maxRows: 70000 } },
      'maxRows',
      '70000',
      'a whole number such as 4096 or 4k from 1 to 65536',
    ],
    [
      'SWITCHYARD_BUDGET_BYTES',
      { env: { SWITCHYARD_BUDGET_BYTES: '1 parsec' } },
      'budgetBytes',
      '"1 parsec"',
      /a size in bytes/,
    ],
    [
      'SWITCHYARD_FEEDBACK',
      { env: { SWITCHYARD_FEEDBACK: 'maybe' } },
      'feedback',
      '"maybe"',
      'true or false',
    ],
    ['--device', { flags: { device: 'tpu' } }, 'device', '"tpu"', 'cpu, cuda'],
    ['--log-level', { flags: { logLevel: 'loud' } }, 'logLevel', '"loud"', /trace, debug/],
    ['--speed', { flags: { speed: 9 } }, 'speed', '9', /there is no such key/],
  ])('names %s, the value and what is allowed', (origin, sources, key, value, allowed) => {
    const error = errorOf(() => loadConfig(schema, sources));
    expect(error.code).toBe('CONFIG_INVALID');
    expect(error.details).toMatchObject({ key, value });
    expect(error.details.allowed).toEqual(expect.stringMatching(allowed));
    expect(error.message).toContain(`${origin} is ${value}; allowed: `);
  });

  test('names the place in the file', () => {
    const file = yaml('worker:\n  maxRows: -1\n');
    expect(errorOf(() => loadConfig(schema, { file })).message).toContain(
      `${file.path}: worker.maxRows is -1`,
    );
  });

  test('names a section that no command has', () => {
    const file = yaml('wroker: { port: 1 }');
    expect(errorOf(() => loadConfig(schema, { file })).message).toContain(
      `${file.path}: section is "wroker"; allowed: up, coordinator, router, worker, `,
    );
  });

  test.each(['worker: [1, 2]', '- 1', 'worker: {', 'just text', ''])(
    'refuses a file that holds %j',
    (text) => {
      expect(errorOf(() => loadConfig(schema, { file: yaml(text) })).code).toBe('CONFIG_INVALID');
    },
  );

  test('takes the settings of TLS as a group of the file', () => {
    const file = yaml('worker: { tls: { ca: /a, cert: /b }, tlsKey: /c }');
    expect(loadConfig(schema, { file })).toMatchObject({ tlsCa: '/a', tlsCert: '/b', tlsKey: '/c' });
    for (const [text, key] of [
      ['worker: { tls: { port: 1 } }', 'worker.tls.port is 1; allowed: there is no such key'],
      ['worker: { tls: true }', 'worker.tls is true; allowed: there is no such key'],
      ['worker: { tls: { ca: 7 } }', 'worker.tls.ca is 7; allowed: text'],
    ] as const)
      expect(errorOf(() => loadConfig(schema, { file: yaml(text) })).message).toContain(key);
  });

  test('shows a value that holds itself, or is long, in few words', () => {
    const own = yaml('worker: { device: &a [*a] }');
    expect(errorOf(() => loadConfig(schema, { file: own })).message).toContain(
      'worker.device is what cannot be shown as JSON; allowed: cpu, cuda',
    );
    const long = yaml(`worker: { device: ${'x'.repeat(100_000)} }`);
    expect(errorOf(() => loadConfig(schema, { file: long })).message.length).toBeLessThan(2000);
  });

  test.each<[string, ConfigSources & { text?: string }, string]>([
    [
      'flags',
      { flags: { nodeToken: 'secret', nodeTokenFile: '/t' } },
      '--node-token-file is "/t"; allowed: either this or --node-token',
    ],
    [
      'the environment',
      { env: { SWITCHYARD_NODE_TOKEN: 'secret', SWITCHYARD_NODE_TOKEN_FILE: '/t' } },
      'SWITCHYARD_NODE_TOKEN_FILE is "/t"; allowed: either this or SWITCHYARD_NODE_TOKEN',
    ],
    [
      'the file',
      { text: 'worker: { nodeTokenFile: /t, nodeToken: secret }' },
      'worker.nodeToken is (hidden); allowed: either this or ',
    ],
    [
      'its groups',
      { text: 'worker: { tls: { ca: /a }, tlsCa: /b }' },
      'worker.tlsCa is "/b"; allowed: either this or ',
    ],
  ])('refuses what %s says in two ways', (_, { text, ...sources }, message) => {
    const file = text === undefined ? null : yaml(text);
    const error = errorOf(() => loadConfig(schema, { ...sources, file }));
    expect(error.code).toBe('CONFIG_INVALID');
    expect(error.message).toContain(message);
    expect(error.message).not.toContain('secret');
  });

  test('lets a token of one source replace the file of another, and the other way round', () => {
    const file = yaml('worker: { nodeToken: a, operatorToken: null, operatorTokenFile: /o }');
    const env = { SWITCHYARD_NODE_TOKEN_FILE: '/n' };
    expect(loadConfig(schema, { file, env })).toMatchObject({ nodeToken: null, nodeTokenFile: '/n' });
    const flags = { nodeToken: 'b', operatorToken: 'c' };
    expect(loadConfig(schema, { file, env, flags })).toMatchObject({
      ...flags,
      nodeTokenFile: null,
      operatorTokenFile: null,
    });
    expect(loadConfig(schema, { file })).toMatchObject({ operatorToken: null, operatorTokenFile: '/o' });
  });

  test.each([
    ['.nan', 'NaN'],
    ['-.inf', '-Infinity'],
    ['[.inf, "\\0NaN", "NaN", null]', '[Infinity,NaN,"NaN",null]'],
  ])('shows %s as it is, not as null', (text, shown) => {
    const file = yaml(`worker: { maxRows: ${text} }`);
    const error = errorOf(() => loadConfig(schema, { file }));
    expect(error.message).toContain(`worker.maxRows is ${shown}; allowed: `);
    expect(error.details.value).toBe(shown);
  });

  test.each(['[::1]', ' 127.0.0.1', 'http://localhost', 'localhost:7070', ''])(
    'refuses to listen at %j',
    (host) => {
      const { message } = errorOf(() => loadConfig(z.object(serverFields), { flags: { host } }));
      expect(message).toContain(
        `--host is ${JSON.stringify(host)}; allowed: a host name or an IP address of this machine`,
      );
    },
  );

  test('refuses a file that does not exist', () => {
    const file = { path: join(directory, 'absent.yaml'), section: 'worker' as const };
    expect(errorOf(() => loadConfig(schema, { file })).message).toContain('ENOENT');
  });

  test('never shows a token', () => {
    const error = errorOf(() => loadConfig(schema, { flags: { token: 'two words' } }));
    expect(error.message).not.toContain('two words');
    expect(JSON.stringify(error.details)).not.toContain('two words');
  });
});

describe('humanBytes and humanCount', () => {
  test.each([
    ['4k', 4000],
    ['4K', 4000],
    ['4Ki', 4096],
    ['1.5M', 1_500_000],
    ['12', 12],
    [12, 12],
  ])('%j is a count of %d', (text, value) => {
    expect(humanCount(0, Number.MAX_SAFE_INTEGER).parse(text)).toBe(value);
  });

  test.each([
    ['1MiB', 2 ** 20],
    ['1mib', 2 ** 20],
    ['512k', 512_000],
    ['512kB', 512_000],
    ['2 GiB'.replace(' ', ''), 2 ** 31],
    ['0.5KiB', 512],
    ['7', 7],
    ['7B', 7],
  ])('%j is %d bytes', (text, value) => {
    expect(humanBytes(0).parse(text)).toBe(value);
  });

  test('either give a whole number within the bounds or refuse', () => {
    const anything = fc.oneof(
      fc.string(),
      fc.anything(),
      fc.double(),
      fc.stringMatching(/^-?[0-9.]{1,6}[kKmMgGtTi]{0,2}[bB]?$/),
    );
    fc.assert(
      fc.property(anything, (value) => {
        const result = humanBytes(1, 1e9).safeParse(value);
        if (!result.success) return;
        expect(Number.isInteger(result.data)).toBe(true);
        expect(result.data).toBeGreaterThanOrEqual(1);
        expect(result.data).toBeLessThanOrEqual(1e9);
      }),
    );
  });
});

describe('addresses of which any will do', () => {
  const several = z.object({ address: addresses().default(['127.0.0.1:7070']) });

  test('are one, several joined by commas, or a list', () => {
    const from = (text: string) =>
      loadConfig(several, { file: { ...yaml(`worker: { address: ${text} }`), section: 'worker' } }).address;
    expect(loadConfig(several, {}).address).toEqual(['127.0.0.1:7070']);
    expect(loadConfig(several, { flags: { address: 'a:1' } }).address).toEqual(['a:1']);
    expect(loadConfig(several, { env: { SWITCHYARD_ADDRESS: 'a:1, [::1]:2' } }).address).toEqual([
      'a:1',
      '[::1]:2',
    ]);
    expect(from('"a:1,b:2"')).toEqual(['a:1', 'b:2']);
    expect(from('["a:1", "b:2"]')).toEqual(['a:1', 'b:2']);
  });

  test.each([['a:1,,b:2'], [','], ['a:1;b:2'], ['http://a:1'], ['a:1,b']])('refuse %s', (address) => {
    expect(() => loadConfig(several, { flags: { address } })).toThrow(
      `--address is ${JSON.stringify(address)}; allowed: host:port without a scheme`,
    );
  });
});

test('a file without an end is not read to it', () => {
  expect(() => loadConfig(workerSchema, { file: { path: '/dev/zero', section: 'worker' } })).toThrow(
    '--config is "/dev/zero"; allowed: a readable YAML file (it has more than 16777216 bytes)',
  );
});

test('a token that no call could carry is refused, and not shown', () => {
  expect(() => loadConfig(workerSchema, { flags: { nodeToken: 'x'.repeat(4097) } })).toThrow(
    '--node-token is (hidden); allowed: one word of printable ASCII, at most 4096 characters',
  );
});

import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import { LocalProcess } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { switchyard } from '../support/cli.js';
import { testRows } from '../support/rows.js';
import { until } from '../support/until.js';

const hidden = 256;
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-bad-start-'));
});

afterAll(() => rm(directory, { recursive: true }));

/** The command ends as wrongly used, with one line that says all of this. */
async function expectUsageError(args: readonly string[], said: readonly string[]): Promise<string> {
  const { status, stderr } = await switchyard(args);
  expect(stderr).toMatch(/^switchyard: CONFIG_INVALID: [^\n]*\n$/);
  for (const part of said) expect(stderr).toContain(part);
  expect(status).toBe(2);
  return stderr;
}

test('a worker on a device that is not there ends at once and says what is', async () => {
  const { status, stderr } = await switchyard(['worker', '--device', 'cuda:999']);
  expect(stderr).toMatch(/^switchyard: INVALID_ARGUMENT: device is cuda(:999)?; allowed: [^\n]*cpu[^\n]*\n$/);
  expect(status).toBe(2);
});

test('an addon that SWITCHYARD_ADDON names in vain is told as a setting', async () => {
  const noAddon = join(directory, 'addon.node');
  await writeFile(noAddon, 'no library');
  for (const [path, reason] of [
    [join(directory, 'nowhere'), 'there is none'],
    [noAddon, noAddon],
  ] as const) {
    const { status, stderr } = await switchyard(['worker'], { SWITCHYARD_ADDON: path });
    expect(stderr).toContain(
      `switchyard: CONFIG_INVALID: SWITCHYARD_ADDON is "${path}"; allowed: a build of`,
    );
    expect(stderr).toContain(reason);
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
    expect(status).toBe(2);
  }
});

test('a relative output without a working directory is refused', () => {
  const gone = join(directory, 'gone');
  const script = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$1" "$2" run --preset tiny --output out';
  const { status, stderr } = spawnSync('bash', ['-c', script, gone, process.execPath, commandLine()]);
  expect(stderr.toString()).toMatch(
    /^switchyard: INVALID_ARGUMENT: output is "out"; allowed: an absolute path, as there is no working directory [^\n]*\n$/,
  );
  expect(status).toBe(2);
});

test.each(['coordinator', 'run', 'demo', 'up'])(
  '%s refuses sizes that do not go together, by their options',
  async (command) => {
    await expectUsageError([command, '--preset', 'tiny', '--top-k', '9'], ['--top-k is "9"', 'from 1 to 8']);
    await expectUsageError(
      [command, '--preset', 'tiny', '--experts', '1'],
      ['--experts is "1"', 'at least 2'],
    );
    await expectUsageError(
      [command, '--preset', 'tiny', '--hidden', '65536', '--ffn', '1048576'],
      ['--ffn is "1048576"', 'at most', 'an expert has up to 17179869184 bytes'],
    );
  },
);

describe('an address that is none', () => {
  // What else is none is tested with the configuration, test/common/address.
  test.each([
    ['router', '--coordinator', 'http://127.0.0.1:7070'],
    ['worker', '--coordinator', ':abc'],
    ['forward', '--address', '127.0.0.1:99999'],
    ['status', '--address', '127.0.0.1'],
  ])('ends %s %s %s at once', async (command, option, address) => {
    const said = [`${option} is ${JSON.stringify(address)}`, 'host:port without a scheme'];
    await expectUsageError([command, option, address], said);
  });

  test.each([
    ['coordinator', 'http://node-a'],
    ['router', 'node-a:7070'],
    ['worker', '[::1]'],
  ])('is not advertised by a %s: %s', async (role, host) => {
    const said = [`--advertise-host is ${JSON.stringify(host)}`, 'a host name or an IP address'];
    await expectUsageError([role, '--advertise-host', host], said);
  });
});

test.each(['coordinator', 'router', 'worker'])(
  'a %s starts beside a Service of Kubernetes named switchyard',
  async (role) => {
    const link = 'tcp://10.0.0.1:7070';
    const environment = { SWITCHYARD_PORT: link, SWITCHYARD_METRICS_PORT: link };
    const flags = role === 'coordinator' ? ['--port', '0', '--metrics-port', '0', '--preset', 'tiny'] : [];
    const args = [role, ...flags, '--host', '192.0.2.1', '--insecure'];
    // That it then refuses the host shows that it took the rest, without waiting for a cluster.
    const { stderr } = await switchyard(args, environment);
    expect(stderr).toMatch(/^switchyard: CONFIG_INVALID: host is "192.0.2.1"/);
  },
);

describe('a configuration file', () => {
  const path = () => join(directory, 'cluster.yaml');

  test.each<[what: string, yaml: string, said: string[]]>([
    [
      'an unknown key',
      'coordinator:\n  wrokers: 2\n',
      ['coordinator.wrokers is 2', 'no such key', 'workers'],
    ],
    ['an unknown section', 'coordniator:\n  workers: 2\n', ['section is "coordniator"', 'up, coordinator']],
    [
      'a word for a number',
      'coordinator:\n  leaseMs: soon\n',
      ['coordinator.leaseMs is "soon"', '100 to 600000'],
    ],
    [
      'a size below any use',
      'coordinator:\n  budgetBytes: 1k\n',
      ['coordinator.budgetBytes is "1k"', '4194304'],
    ],
    [
      'a negative number of workers',
      'coordinator:\n  workers: -1\n',
      ['coordinator.workers is -1', 'from 1'],
    ],
    ['what is no YAML', 'coordinator: {\n', ['readable YAML file']],
    ['a list', '- coordinator\n', ['a YAML mapping']],
    ['a section that is a list', 'coordinator: [1]\n', ['coordinator is [1]', 'a mapping of keys to values']],
  ])('with %s is refused', async (_what, yaml, said) => {
    await writeFile(path(), yaml);
    await expectUsageError(['coordinator', '--preset', 'tiny', '--config', path()], [path(), ...said]);
  });

  test('with a bad token is refused without showing it', async () => {
    await writeFile(path(), 'coordinator:\n  token: open sesame\n');
    const said = await expectUsageError(
      ['coordinator', '--config', path()],
      ['coordinator.token is (hidden)'],
    );
    expect(said).not.toContain('sesame');
  });

  test('that is wrong for a worker ends `up`, which names worker, key and value', async () => {
    await writeFile(path(), 'worker:\n  maxRows: none\n');
    const { status, stderr } = await switchyard([
      'up',
      '--preset',
      'tiny',
      '--port',
      '0',
      '--metrics-port',
      '0',
      '--workers',
      '1',
      '--config',
      path(),
    ]);
    expect(stderr).toMatch(
      /^switchyard: CONFIG_INVALID: worker-0 exited with status 2: .*worker\.maxRows is "none"; allowed: a whole number/m,
    );
    expect(status).toBe(2);
  });
});

describe('flags that contradict each other or make no sense', () => {
  test.each<[args: string[], said: string[]]>([
    [
      ['--preset', 'tiny', '--model', 'x'],
      ['preset is "tiny"', 'model is "x"', 'either a model directory'],
    ],
    [
      ['--model', 'x', '--hidden', '64'],
      ['hidden is 64', 'model is "x"'],
    ],
    [
      ['--preset', 'tiny', '--heartbeat-ms', '2000'],
      ['heartbeatMs is 2000', '1500'],
    ],
    [
      ['--preset', 'tiny', '--topology', '/nowhere.yaml'],
      ['/nowhere.yaml', 'topology', 'ENOENT'],
    ],
    [
      ['--preset', 'tiny', '--host', '192.0.2.1', '--insecure'],
      ['host is "192.0.2.1"', 'an address of this machine'],
    ],
  ])('%j', async (args, said) => {
    await expectUsageError(['coordinator', '--port', '0', '--metrics-port', '0', ...args], said);
  });
});

describe('a log directory that cannot be written is refused', () => {
  const up = ['up', '--preset', 'tiny', '--workers', '1', '--port', '0', '--metrics-port', '0'];
  const refused = (path: string, reason: string) =>
    expectUsageError([...up, '--log-directory', path], [`logDirectory is "${path}"; allowed: `, reason]);

  test('where there can be none', () => refused('/proc/x/y', 'ENOENT'));

  test('where a file is a directory', async () => {
    await mkdir(join(directory, 'logs', 'worker-0.log'), { recursive: true });
    await refused(join(directory, 'logs'), 'EISDIR');
  });

  test('where a file is a pipe that nobody reads', async () => {
    const logs = join(directory, 'pipes');
    await mkdir(logs);
    spawnSync('mkfifo', [join(logs, 'coordinator.log')]);
    await refused(logs, 'ENXIO');
  });
});

describe('a port in use', () => {
  let holder: Server;
  let port: number;
  beforeAll(async () => {
    holder = createServer();
    await new Promise<void>((resolve) => holder.listen(0, '127.0.0.1', resolve));
    port = (holder.address() as AddressInfo).port;
  });
  afterAll(() => {
    holder.close();
  });

  test.each(['router', 'worker'])('is named by a %s', async (role) => {
    await expectUsageError([role, '--port', String(port)], [`port is ${port}: in use on 127.0.0.1`]);
  });

  test('is named by a coordinator whose metrics want it', async () => {
    const args = ['coordinator', '--preset', 'tiny', '--port', '0', '--metrics-port', String(port)];
    await expectUsageError(args, [`metricsPort is ${port}: in use on 127.0.0.1`, '0 for a free one']);
  });

  test('is named by `up`', async () => {
    const args = ['up', '--preset', 'tiny', '--workers', '1', '--port', String(port), '--metrics-port', '0'];
    const { status, stderr } = await switchyard(args);
    expect(stderr).toContain(
      `switchyard: CONFIG_INVALID: coordinator exited with status 2: port is ${port}: in use`,
    );
    expect(status).toBe(2);
  });
});

describe('a cluster that lacks workers', () => {
  const node = { port: 0, metricsPort: 0, threads: 1 };
  const sequences = 4;
  const input = testRows(200, hidden);
  const processes = new Map<string, LocalProcess>();
  let address: string;
  let client: SwitchyardClient;
  let expected: Buffer;

  function start(role: 'coordinator' | 'worker', name: string, flags: Record<string, string | number>) {
    const process = new LocalProcess(role, name, { ...node, name, ...flags }, {}, () => {});
    processes.set(name, process);
    return process;
  }
  const startWorker = (name: string, flags = {}) => start('worker', name, { coordinator: address, ...flags });

  async function forward(): Promise<Buffer> {
    const call = await client.forward(input, { sequences, feedback: false });
    return Buffer.from((await call.collect()).rows);
  }

  beforeAll(async () => {
    const flags = { preset: 'tiny', workers: 2, readyWaitMs: 60_000 };
    ({ address } = await start('coordinator', 'coordinator', flags).listening);
    client = await SwitchyardClient.connect(address);
  });

  afterAll(async () => {
    await client.close();
    await Promise.all([...processes.values()].map((process) => process.stop(10_000)));
  });

  test('ends a batch at its deadline, and says what it waited for', async () => {
    const batch = ['--sequences', '2', '--length', '10', '--deadline', '1'];
    const { status, stderr } = await switchyard(['forward', '--address', address, ...batch]);
    expect(stderr).toMatch(
      /^switchyard: DEADLINE_EXCEEDED: the deadline of the batch passed while the cluster/,
    );
    expect(stderr).toContain('0 of the 2 expected workers have joined');
    expect(status).toBe(1);
  });

  test('holds a batch without a deadline until they have come', async () => {
    const early = forward();
    early.catch(() => {});
    startWorker('worker-0');
    startWorker('worker-1');
    expected = await early;
    expect((await forward()).equals(expected)).toBe(true);
  });

  test('takes no worker that holds another model, and tells it why', async () => {
    const stranger = startWorker('stranger', { model: join('test', 'fixtures', 'mixtral') });
    const exit = await stranger.exited;
    expect(exit).toEqual({ code: 1, signal: null });
    const { code, message } = stranger.exitError(exit);
    expect(code).toBe('MODEL_MISMATCH');
    expect(message).toMatch(
      /status 1: worker stranger has model [0-9a-f]{64}; this cluster serves tiny, [0-9a-f]{64}/,
    );
    const { view } = await client.describeCluster();
    expect(view?.nodes.map(({ name }) => name)).not.toContain('stranger');
    expect((await forward()).equals(expected)).toBe(true);
  });

  test('holds a batch while a worker starts again', async () => {
    const worker = processes.get('worker-1')!;
    worker.kill('SIGKILL');
    await worker.exited;
    // Until the other worker has loaded what this one held: who asks now and then may never see it.
    const said = (line: string) => line.includes('"event":"not-ready"');
    await until(() => processes.get('coordinator')!.recentLines.some(said));
    startWorker('worker-1');
    expect((await forward()).equals(expected)).toBe(true);
  });
});

import { afterAll, describe, expect, test } from '@jest/globals';
import { parseLine, toArguments } from '../../services/cli/local-process.js';
import { ControlGroup, type GroupedProcess } from '../support/cgroup.js';
import { atEnd, connect, Service } from '../support/services.js';
import { until } from '../support/until.js';

const mebibyte = 1024 * 1024;
const limit = 512 * mebibyte;
const memory = ControlGroup.create('memory', {
  v1: ['memory.limit_in_bytes', String(limit)],
  v2: ['memory.max', String(limit)],
});
const cpu = ControlGroup.create('cpu', {
  v1: ['cpu.cfs_quota_us', '100000'],
  v2: ['cpu.max', '100000 100000'],
});

afterAll(() => {
  memory?.remove();
  cpu?.remove();
});

const listening = ({ lines }: GroupedProcess) =>
  lines.map(parseLine).find((line) => line?.event === 'listening');

/** Starts a role in a group; the address that it listens on. */
async function start(
  group: ControlGroup,
  args: string[],
): Promise<{ process: GroupedProcess; address: string }> {
  const process = group.switchyard([...args, '--port', '0', '--metrics-port', '0']);
  atEnd(() => process.stop());
  const said = await until(
    () => listening(process),
    (line) => line !== undefined,
  );
  return { process, address: String(said!.address) };
}

(memory === null ? describe.skip : describe)('under a memory limit of 512 MiB', () => {
  const group = memory!;

  /** Until the coordinator says that experts fit nowhere. */
  async function untilFull(head: Service): Promise<string> {
    const { reason } = await until(
      () => head.readiness(),
      (now) => now.reason.includes('fits on none of the'),
    );
    return reason;
  }

  test('experts that do not fit into it are not loaded, and the coordinator tells the numbers', async () => {
    // 8 experts of 256 MiB.
    const head = new Service('coordinator', { preset: 'reference', experts: 8, router: false });
    const args = ['worker', '--coordinator', await head.address, '--threads', '1'];
    const { process } = await start(group, args);
    const said =
      /has 268435456 bytes and fits on none of the 1 workers without it: the most that is left on one of them is \d+ bytes/;
    expect(await untilFull(head)).toMatch(said);
    expect(process.lines.join('\n')).not.toContain('worker-failed');
    expect(group.oomKills()).toBe(0);
  });

  test('workers share it: what would fit into one of them alone is not loaded beside the others', async () => {
    // Three shares of 160 MiB, of which each would fit alone.
    const model = {
      preset: 'tiny',
      hidden: 1024,
      ffn: 2048,
      experts: 40,
      layers: 1,
      workers: 3,
      router: false,
    };
    const head = new Service('coordinator', model);
    const args = ['worker', '--coordinator', await head.address, '--threads', '1', '--slab-bytes', '64MiB'];
    for (let index = 0; index < 3; index += 1) await start(group, args);
    expect(await untilFull(head)).toMatch(/has 12582912 bytes and fits on none of the 3 workers without it/);
    expect(group.oomKills()).toBe(0);
  });

  test.each([
    ['worker', '--slab-bytes', 'slabBytes'],
    ['router', '--budget-bytes', 'budgetBytes'],
    ['coordinator', '--budget-bytes', 'budgetBytes'],
  ])('a %s with too large a %s does not start', async (role, flag, key) => {
    const process = group.switchyard([role, flag, '500MiB', '--port', '0', '--metrics-port', '0']);
    expect(await process.exited).toEqual({ code: 1, signal: null });
    expect(process.lines).toEqual([
      expect.stringMatching(
        new RegExp(
          `^switchyard: RESOURCE_EXHAUSTED: ${key} is 524288000; allowed: .*within 536870912 bytes, which /sys`,
        ),
      ),
    ]);
  });

  /** Wide rows and small experts: a batch larger than the limit that is soon computed. */
  const model = { preset: 'tiny', hidden: 2048, ffn: 32, layers: 1 };
  const rowBytes = 2 * model.hidden;
  const tokens = (1.25 * limit) / rowBytes;

  async function* rows(): AsyncGenerator<Uint8Array> {
    const block = new Uint8Array(2 ** 24);
    for (let sent = 0; sent < tokens * rowBytes; sent += block.byteLength) yield block;
  }

  async function forward(address: string): Promise<void> {
    const client = await connect(address);
    await client.waitUntilReady(120_000);
    const call = await client.forward(rows(), { sequences: 64, length: tokens / 64 });
    let answered = 0;
    for await (const { count } of call) answered += count;
    expect(answered).toBe(tokens);
    expect(group.oomKills()).toBe(0);
  }

  test('a coordinator with its router stays within it, by its defaults, whatever the batch', async () => {
    const { address } = await start(group, ['coordinator', ...toArguments(model)]);
    new Service('worker', { coordinator: address });
    await forward(address);
  });

  test('a worker stays within it, by its defaults, whatever the batch', async () => {
    const address = await new Service('coordinator', model).address;
    await start(group, ['worker', '--coordinator', address]);
    await forward(address);
  });

  test('doctor says what is limited, and by what', async () => {
    const process = group.switchyard(['doctor']);
    await process.exited;
    expect(process.lines.join('\n')).toMatch(/limited to 512\.0 MiB by \/sys\/fs\/cgroup\/.*memory\./);
  });
});

(cpu === null ? describe.skip : describe)('under a quota of one core', () => {
  const group = cpu!;

  test('a worker computes with one thread', async () => {
    const { process } = await start(group, ['worker', '--coordinator', '127.0.0.1:1']);
    expect(listening(process)).toMatchObject({ backend: { threads: 1 } });
  });

  test('routers and coordinators work with one thread, and doctor says why', async () => {
    for (const role of ['router', 'coordinator']) {
      const process = group.switchyard([role, '--help']);
      await process.exited;
      expect(process.lines.join('\n')).toMatch(/--threads <n>\s+threads for row operations \(default: 1\)/);
    }
    const doctor = group.switchyard(['doctor']);
    await doctor.exited;
    expect(doctor.lines.join('\n')).toMatch(/limited to 1\.00 by \/sys\/fs\/cgroup\/.*cpu\./);
  });

  test('two threads are not measured beside one', async () => {
    const name = 'experts/1024x2816-swiglu-512-2threads';
    const bench = group.switchyard(['bench', name]);
    expect((await bench.exited).code).toBe(0);
    expect(bench.lines).toContain(`${name} is left out: there is one core`);
  });
});

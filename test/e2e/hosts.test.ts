import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { HostCluster } from '../../bench/hosts/cluster.js';
import { type Host, plugCable, shapeLink, whyNoHosts } from '../../bench/hosts/host.js';
import type { SwitchyardError } from '../../services/client/index.js';
import { sleep } from '../../services/common/lifecycle.js';

const obstacle = whyNoHosts();
if (obstacle !== null) process.stderr.write(`two hosts are not tested: ${obstacle}\n`);

const preset = 'tiny';
/** A batch must still be under way when the link is cut a second later: its 15 MB each way take the link several, whatever computes it. */
const tokens = 8_192;
const linkRate = '24mbit';
const recoveryMs = 60_000;

interface Ending {
  host: string;
  /** Of all answers; null if the batch failed. */
  digest: string | null;
  error: SwitchyardError | null;
  endedMs: number;
}

(obstacle === null ? describe : describe.skip)('two hosts joined by a thin link', () => {
  let cluster: HostCluster;
  let expected: string;

  /** The same batch from the client of either host, each through the router of its own host. */
  const batches = (): Promise<Ending[]> => {
    const run = async (host: Host): Promise<Ending> => {
      const outcome = await host
        .call('digest', { chunkTokens: 512, combine: 'exact', feedback: false })
        .then((digest) => ({ digest, error: null }))
        .catch((error: SwitchyardError) => ({ digest: null, error }));
      return { host: host.name, ...outcome, endedMs: performance.now() };
    };
    return Promise.all(cluster.hosts.map(run));
  };

  /** Cuts the link for a while, in the middle of batches. */
  const cutDuring = async (cutMs: number): Promise<{ cutAtMs: number; endings: Ending[] }> => {
    const running = batches();
    await sleep(1_000);
    await plugCable(cluster.hosts[0], 'down');
    const cutAtMs = performance.now();
    await sleep(cutMs);
    await plugCable(cluster.hosts[0], 'up');
    return { cutAtMs, endings: await running };
  };

  beforeAll(async () => {
    cluster = await HostCluster.start({ preset });
    await shapeLink(cluster.hosts, linkRate);
    await Promise.all(cluster.hosts.map((host) => host.call('prepare', preset, tokens)));
    const [a, b] = await batches();
    expect(a!.error ?? b!.error).toBeNull();
    expect(a!.digest).toBe(b!.digest);
    expected = a!.digest!;
  });

  afterAll(() => cluster?.stop(), 30_000);

  test('over UCX, rows between hosts travel by TCP and those of one host do not', async () => {
    const lines = await Promise.all([
      cluster.hosts[0].call('lines', 'router-a'),
      cluster.hosts[1].call('lines', 'router-b'),
    ]);
    for (const [index, own] of ['worker-a', 'worker-b'].entries()) {
      const open = lines[index]!.map((line) => JSON.parse(line)).filter((said) => said.event === 'link-open');
      const lanes = new Map(open.map(({ worker, lanes }) => [worker, lanes as string]));
      expect(lanes.size).toBe(2);
      for (const [worker, names] of lanes) {
        if (worker === own) expect(names).not.toContain('tcp');
        else expect(names).toBe(process.env.SWITCHYARD_TRANSPORT === 'ucx' ? 'stream tcp' : 'http2');
      }
    }
  });

  /** Whatever a batch ended with, it is the right answer or says which expert was out of reach. */
  const expectHonest = ({ digest, error }: Ending) => {
    if (error === null) return expect(digest).toBe(expected);
    expect(error).toMatchObject({
      code: 'WORKER_LOST',
      message: expect.stringMatching(/^(worker worker-[ab], )?layer \d+, expert \d+/),
    });
  };

  /** Routers hold batches until their links are there again; on a loaded machine a lease may run out once more. */
  const expectRecovery = async () => {
    const endMs = performance.now() + recoveryMs;
    for (;;) {
      const endings = await batches();
      endings.forEach(expectHonest);
      if (endings.every(({ error }) => error === null)) return;
      if (performance.now() > endMs) throw endings.find(({ error }) => error !== null)!.error;
    }
  };

  test('a cut about as long as the lease delays batches or ends them, and changes nothing', async () => {
    const { endings } = await cutDuring(2_000);
    endings.forEach(expectHonest);
    await expectRecovery();
  });

  test('in a long cut the host of the coordinator goes on alone, the other waits or says what it lacks, and all is well afterwards', async () => {
    const { endings } = await cutDuring(30_000);
    endings.forEach(expectHonest);
    expect(endings.find(({ host }) => host === 'host-a')!.error).toBeNull();
    await expectRecovery();
  });

  test('the processes of a host that is cut off end in order, and in time', async () => {
    const [a, b] = cluster.hosts;
    const running = batches();
    await sleep(1_000);
    await plugCable(a, 'down');
    const stopMs = 10_000;
    const exits = await Promise.all([
      a.call('stop', 'router-a', stopMs, 'SIGTERM'),
      b.call('stop', 'router-b', stopMs, 'SIGINT'),
      b.call('stop', 'worker-b', stopMs, 'SIGHUP'),
    ]);
    expect(exits).toEqual(exits.map(() => ({ code: 0, signal: null })));
    await running;
  });
});

import { describe, expect, test } from '@jest/globals';
import { fixedPort } from '../../bench/fixed-port.js';
import type { Flags } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { EtcdLease } from '../../services/platform/etcd-lease.js';
import { systemClock } from '../../services/runtime/system.js';
import { Authority, clientName, loopback } from '../support/certificates.js';
import { switchyard } from '../support/cli.js';
import { Etcd } from '../support/etcd.js';
import { Load } from '../support/load.js';
import { atEnd, Service, works } from '../support/services.js';
import { standStill } from '../support/stand-still.js';
import { until } from '../support/until.js';

const withEtcd = works('coordinators that lead by a lease of etcd', 'etcd', '--version')
  ? describe
  : describe.skip;

withEtcd('coordinators with a lease of etcd', () => {
  const record = { holder: 'a', address: '127.0.0.1:1', term: 3, leaseMs: 5_000 };

  test('the record is replaced only as it was read', async () => {
    const etcd = await Etcd.start();
    atEnd(() => etcd.stop());
    const lease = new EtcdLease([etcd.address], 'test', systemClock, null);
    atEnd(() => lease.close());
    expect(await lease.read(5_000)).toBe(null);
    const first = await lease.replace(null, record, 5_000);
    expect(await lease.replace(null, { ...record, holder: 'b' }, 5_000)).toBe(null);
    expect(await lease.read(5_000)).toEqual(first);
    expect(first).toMatchObject(record);
    const second = await lease.replace(first!.version, { ...record, term: 4 }, 5_000);
    expect(await lease.replace(first!.version, record, 5_000)).toBe(null);
    expect(await lease.read(5_000)).toEqual(second);
    const other = new EtcdLease([etcd.address], 'another', systemClock, null);
    atEnd(() => other.close());
    expect(await other.read(5_000)).toBe(null);
  });

  test('what stands still or cannot be reached rejects in time, and another member is asked next', async () => {
    const etcd = await Etcd.start();
    atEnd(() => etcd.stop());
    const lease = new EtcdLease(['127.0.0.1:1', etcd.address], 'test', systemClock, null);
    atEnd(() => lease.close());
    await expect(lease.read(2_000)).rejects.toMatchObject({ code: 'LINK_LOST' });
    expect(await lease.read(5_000)).toBe(null);
    await standStill(etcd.process);
    await expect(lease.read(200)).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  });

  describe('where etcd speaks TLS', () => {
    const authority = new Authority();
    const stranger = new Authority();
    const { ca } = authority;
    const shown = authority.issue('coordinator', [clientName]);
    const start = async () => {
      const etcd = await Etcd.start({ ca, ...authority.issue('etcd', loopback) });
      atEnd(() => etcd.stop());
      return etcd;
    };
    const coordinator = (etcd: string, name: string, files: Flags) =>
      new Service('coordinator', {
        preset: 'tiny',
        name,
        lease: 'etcd',
        etcd,
        leaderLeaseMs: 2_000,
        ...files,
      });

    test('one leads, and when it is killed the other', async () => {
      const etcd = await start();
      const files = { etcdCa: ca, etcdCert: shown.cert, etcdKey: shown.key };
      const both = ['a', 'b'].map((name) => coordinator(etcd.address, name, files));
      const leads = () => both.findIndex((one) => one.events('leads').length > 0);
      const leader = await until(leads, (index) => index >= 0);
      both[leader]!.process.kill('SIGKILL');
      const [next] = await until(
        () => both[1 - leader]!.events('leads'),
        (events) => events.length > 0,
      );
      expect(next).toMatchObject({ term: 2 });
    });

    test.each([
      [
        'another CA',
        { etcdCa: stranger.ca, etcdCert: shown.cert, etcdKey: shown.key },
        /is not signed by etcdCa/,
      ],
      ['no certificate', { etcdCa: ca }, /certificate/],
      ['no TLS', {}, /may want TLS .tlsCa; for etcd, etcdCa./],
    ])('one with %s does not lead, and says why', async (_, files: Flags, reason) => {
      const etcd = await start();
      const one = coordinator(etcd.address, 'a', files);
      // A busy machine may first find that etcd has not answered in time.
      await until(
        () => one.events('lease-unreachable'),
        (events) => events.some((told) => reason.test(told.reason as string)),
      );
      expect(one.events('leads')).toEqual([]);
    });
  });

  test('the console of the one that does not lead says so, and links to that of the one that does', async () => {
    const etcd = await Etcd.start();
    atEnd(() => etcd.stop());
    const flags: Flags = { preset: 'tiny', workers: 1, lease: 'etcd', etcd: etcd.address };
    const both = ['a', 'b'].map((name) => new Service('coordinator', { ...flags, name }));
    const urls = await Promise.all(both.map(async ({ process }) => (await process.listening).metricsUrl));
    const leader = await until(
      () => both.findIndex((one) => one.events('leads').length > 0),
      (index) => index >= 0,
    );
    const said = async () => {
      const { body } = await fetch(`${urls[1 - leader]}/console/feed`);
      const reader = body!.pipeThrough(new TextDecoderStream()).getReader();
      const { value } = await reader.read();
      await reader.cancel();
      return value!;
    };
    const text = await until(said, (text) => text.includes(`"leaderUrl":"${urls[leader]}"`));
    expect(text).toContain(`does not lead; ${await both[leader]!.address} does`);
  });

  test('a leader that is killed, and one that stops, is followed by the other; no batch is lost, no expert moves', async () => {
    const etcd = await Etcd.start();
    atEnd(() => etcd.stop());
    const flags: Flags = { preset: 'tiny', router: false, workers: 2, lease: 'etcd', etcd: etcd.address };
    const quick = { leaderLeaseMs: 2_000, rebalanceSeconds: 3_600 };
    const coordinator = (name: string, port: number) =>
      new Service('coordinator', { ...flags, ...quick, name, port });
    let [leader, standby] = [coordinator('a', await fixedPort()), coordinator('b', await fixedPort())];
    if (!(await until(() => [leader, standby].find((one) => one.events('leads').length > 0)))) return;
    if (leader.events('leads').length === 0) [leader, standby] = [standby, leader];
    const addresses = [await leader.address, await standby.address];
    const list = addresses.join(',');
    const workers = ['w0', 'w1'].map((name) => new Service('worker', { name, coordinator: list }));
    const router = new Service('router', { name: 'r', coordinator: addresses[1]! });
    await router.address;

    // The client too knows the coordinator that does not lead, and no other.
    const client = await SwitchyardClient.connect(addresses[1]!);
    atEnd(() => client.destroy());
    await client.waitUntilReady(60_000);
    expect(await standby.readiness()).toMatchObject({
      status: 503,
      reason: `this coordinator does not lead; ${addresses[0]} does`,
    });
    const cordoned = await switchyard(['cordon', 'w0', '--address', addresses[1]!]);
    expect(cordoned).toMatchObject({ status: 0, stdout: 'w0: gets no new copies\n' });

    const load = await Load.start(client);
    await load.more(4);
    leader.process.kill('SIGKILL');
    await until(() => standby.events('leads').length === 1);
    expect(standby.events('leads')[0]).toMatchObject({ term: 2 });
    await until(async () => (await standby.readiness()).ready);
    await load.more(4);

    const third = coordinator('c', Number(addresses[0]!.split(':')[1]));
    await until(() => third.events('follows').length === 1);
    await standby.process.stop(20_000);
    await until(() => third.events('leads').length === 1);
    expect(third.events('leads')[0]).toMatchObject({ term: 3 });
    await until(() => workers.every((one) => one.events('coordinator-joined').length === 3));
    await until(async () => (await third.readiness()).ready);
    await load.more(4);
    await load.stop();
    for (const worker of workers) {
      expect(worker.events('experts-loaded')).toHaveLength(1);
      expect(worker.events('expert-dropped')).toEqual([]);
    }
  });
});

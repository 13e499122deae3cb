import { expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { type TransportChoice, transportChoices } from '../../services/transport/link.js';
import { type Namespaces, ownNamespaces, wakesNobody } from '../../services/transport/ucx/namespaces.js';
import { nativeUcx } from '../../services/transport/ucx/port.js';
import type { UcxSource } from '../../services/transport/ucx/source.js';
import { batchOf, dial, never, rawWorker, startWorker, ucxEnd, welcome } from './support.js';

const pairs = transportChoices.flatMap((router) => transportChoices.map((worker) => ({ router, worker })));

/** Which transport two ends must agree on, and what the link says of it; null: there is no link. */
function agreed(
  router: TransportChoice,
  worker: TransportChoice,
): [transport: string | null, reason: string] {
  if (router === 'grpc') return ['grpc', 'transport is grpc at the router'];
  if (native.ucx === null) return [router === 'ucx' ? null : 'grpc', 'the router is built without UCX'];
  if (worker === 'grpc') return [router === 'ucx' ? null : 'grpc', 'transport is grpc at worker w'];
  return ['ucx', router === 'ucx' ? 'transport is ucx' : 'both ends have UCX'];
}

test.each(pairs)(
  'a router for $router and a worker for $worker agree, and the link says why',
  async (ends) => {
    const { address } = await startWorker({ transport: ends.worker });
    const dialled = dial(address, { transport: ends.router });
    const [transport, reason] = agreed(ends.router, ends.worker);
    if (transport === null) {
      await expect(dialled).rejects.toMatchObject({
        code: 'LINK_LOST',
        message: `no way over UCX: ${reason}`,
      });
      return;
    }
    const link = await dialled;
    expect(link).toMatchObject({ transport, reason });
    expect(link.lanes).toMatch(transport === 'grpc' ? /^http2$/ : /^\w+( \w+)*$/);
    (await link.exchange(batchOf(), never)).rows.release();
  },
);

const onUcx = native.ucx === null ? test.skip : test;

onUcx(
  'ends that both encrypt what leaves their machine share its memory; where only one does, they keep to gRPC',
  async () => {
    if (!native.describe().ucx?.encrypts) return;
    const encrypted = nativeUcx(true);
    const { address } = await startWorker({ ucx: encrypted });
    const link = await dial(address, { transport: 'ucx', ucx: encrypted });
    expect(link.lanes).not.toContain('tls');
    (await link.exchange(batchOf(), never)).rows.release();
    const reason = /one end encrypts rows that leave its machine and the other does not/;
    const auto = await dial(address, { router: 'other', transport: 'auto' });
    expect(auto).toMatchObject({ transport: 'grpc', reason: expect.stringMatching(reason) });
    const dialled = dial(address, { router: 'other', transport: 'ucx' });
    await expect(dialled).rejects.toMatchObject({
      code: 'LINK_LOST',
      message: expect.stringMatching(reason),
    });
  },
);

onUcx(
  'a worker on loopback declines UCX to a router that shares its memory and not its network',
  async () => {
    const { address } = await startWorker();
    const ucx = nativeUcx(false);
    const elsewhere: UcxSource = {
      ...ucx,
      createPort: (fabric, options) => {
        const port = ucx.createPort(fabric, options);
        const end = { ...port.end, networkNamespace: 'another' };
        return Object.defineProperty(port, 'end', { value: end });
      },
    };
    const reason =
      'worker w serves on loopback, and the other end is in another network namespace, where UCX would not wake it';
    const auto = await dial(address, { transport: 'auto', ucx: elsewhere });
    expect(auto).toMatchObject({ transport: 'grpc', reason });
    const dialled = dial(address, { transport: 'ucx', ucx: elsewhere });
    await expect(dialled).rejects.toMatchObject({ message: `no way over UCX: ${reason}` });
  },
);

test('only ends that have the IPC namespace in common and not the network need to leave shared memory out', () => {
  const here: Namespaces = { ipcNamespace: 'a', networkNamespace: 'b' };
  expect(wakesNobody(here, here)).toBe(false);
  expect(wakesNobody(here, { ...here, networkNamespace: 'c' })).toBe(true);
  expect(wakesNobody(here, { ipcNamespace: 'c', networkNamespace: 'c' })).toBe(false);
  // An end of an earlier version, and one that cannot tell.
  const unknown = { ipcNamespace: '', networkNamespace: '' };
  expect([wakesNobody(here, unknown), wakesNobody(unknown, here), wakesNobody(unknown, unknown)]).toEqual([
    false,
    false,
    false,
  ]);
  expect(wakesNobody(ownNamespaces, ownNamespaces)).toBe(false);
});

onUcx(
  'where UCX does not reach, a link falls back to gRPC and says so; one for ucx alone is refused',
  async () => {
    // Its channel is not there, so nothing that the router says on it is heard.
    const address = await rawWorker(({ hello }, say) => {
      if (hello) say({ welcome: { ...welcome.welcome, ...(hello.ucx && { ucx: ucxEnd(4_000_000) }) } });
    });
    const [auto, ucx] = await Promise.allSettled([
      dial(address, { transport: 'auto' }),
      dial(address, { transport: 'ucx' }),
    ]);
    const text = `no way over UCX: no welcome from ${address} within 5000 ms`;
    expect(auto).toMatchObject({ value: { transport: 'grpc', lanes: 'http2', reason: text } });
    expect(ucx).toMatchObject({ reason: { code: 'LINK_LOST', message: text } });
  },
);

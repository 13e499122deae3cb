import { expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { listeningSockets } from '../support/sockets.js';
import { dialProcess, forkWorker } from './processes.js';

const loopback = '0100007F';
const loopbackHost = '127.0.0.1';

/** The sockets that a worker, whose server is on 127.0.0.1, listens on once it has a link over UCX. */
async function socketsOf(environment: Record<string, string>, host = loopbackHost) {
  const { worker, address } = await forkWorker(environment);
  const link = await dialProcess(address, { transport: 'ucx', host });
  return { lanes: link.lanes, addresses: listeningSockets(worker.pid!).map((socket) => socket.address) };
}

const onUcx = native.ucx === null ? test.skip : test;

onUcx('where a worker cannot start UCX, links stay on gRPC, and one for ucx alone is refused', async () => {
  const { address } = await forkWorker({ UCX_TLS: 'nothing' });
  const reason = /^worker bench does not reach the other end by UCX: ucp_init: /;
  const link = await dialProcess(address, { transport: 'auto' });
  expect(link).toMatchObject({ transport: 'grpc', reason: expect.stringMatching(reason) });
  const dialled = dialProcess(address, { transport: 'ucx', router: 'other' });
  await expect(dialled).rejects.toMatchObject({
    code: 'LINK_LOST',
    message: expect.stringContaining('no way over UCX: worker bench does not reach'),
  });
});

onUcx('beside a server on loopback UCX opens no port', async () => {
  const { lanes, addresses } = await socketsOf({});
  expect(lanes).not.toContain('tcp');
  expect(addresses).toEqual([loopback]);
});

onUcx('beside a server on loopback UCX that is told to use TCP opens ports on loopback alone', async () => {
  const { lanes, addresses } = await socketsOf({ UCX_TLS: 'tcp' }, '0.0.0.0');
  expect(lanes).toBe('stream tcp');
  expect(addresses.length).toBeGreaterThan(1);
  expect(new Set(addresses)).toEqual(new Set([loopback]));
});

import { native } from '../native/index.js';
import { Access } from '../services/common/access.js';
import { startGrpcServer } from '../services/common/grpc-server.js';
import { nativeRuntime } from '../services/runtime/native.js';
import { linkService } from '../services/transport/grpc/service.js';
import { linkSecretBytes } from '../services/transport/link-key.js';
import { acceptLinks, type LinkServiceOptions } from '../services/transport/serve.js';
import { nativeUcx } from '../services/transport/ucx/port.js';

/** Of links that are measured without a coordinator: both ends know it. */
export const benchSecret = Buffer.alloc(linkSecretBytes);

/** Serves links on loopback; resolves with the address. */
export async function serveLinks({
  encrypted = false,
  ...options
}: Omit<LinkServiceOptions, 'onCancel' | 'access' | 'ucx' | 'runtime'> & {
  encrypted?: boolean;
}): Promise<string> {
  const { worker, messageBytesMax, log } = options;
  const access = new Access({});
  const links = { ...options, access, ucx: nativeUcx(encrypted), runtime: nativeRuntime, onCancel: () => {} };
  const server = await startGrpcServer({
    host: '127.0.0.1',
    port: 0,
    access,
    insecure: false,
    messageLimit: { bytesMax: messageBytesMax, node: `worker ${worker}` },
    services: [linkService(acceptLinks(links))],
    log,
  });
  return server.address;
}

/** What token batches can travel over here, the faster way first. */
export function transportsHere(): ('ucx' | 'grpc')[] {
  return native.ucx === null ? ['grpc'] : ['ucx', 'grpc'];
}

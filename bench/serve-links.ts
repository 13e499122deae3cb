import { native } from '../native/index.js';
import { startGrpcServer } from '../services/common/grpc-server.js';
import { type LinkServiceOptions, linkService } from '../services/transport/serve.js';

/** Serves links on loopback, without a token; resolves with the address. */
export async function serveLinks(options: Omit<LinkServiceOptions, 'onCancel'>): Promise<string> {
  const { messageBytesMax, log } = options;
  const server = await startGrpcServer({
    host: '127.0.0.1',
    port: 0,
    token: null,
    insecure: false,
    messageBytesMax,
    services: [linkService({ ...options, onCancel: () => {} })],
    log,
  });
  return server.address;
}

/** What token batches can travel over here, the faster way first. */
export function transportsHere(): ('ucx' | 'grpc')[] {
  return native.ucx === null ? ['grpc'] : ['ucx', 'grpc'];
}

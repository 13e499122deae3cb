import { Access } from '../../services/common/access.js';
import type { InferenceHandlers } from '../../services/common/generated/switchyard/v1/Inference.js';
import { type GrpcServer, startGrpcServer } from '../../services/common/grpc-server.js';
import { createLogger } from '../../services/common/log.js';
import { services } from '../../services/common/protocol.js';
import type { Watchers } from '../../services/common/watchers.js';

/** A server that tells of a cluster, and does nothing else; the caller closes it. */
export function serveWatch(watchers: Watchers, bytesMax = 1024): Promise<GrpcServer> {
  const implementation = { WatchCluster: (call) => watchers.accept(call) } as Partial<InferenceHandlers>;
  return startGrpcServer({
    host: '127.0.0.1',
    port: 0,
    access: new Access({}),
    insecure: false,
    messageLimit: { bytesMax, node: 'router r' },
    services: [{ definition: services.Inference, implementation: implementation as InferenceHandlers }],
    log: createLogger('coordinator', 'test', 'silent'),
  });
}

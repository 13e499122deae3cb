import type { RouterMessage } from '../../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessageInput } from '../../common/generated/switchyard/v1/WorkerMessage.js';
import { serveDuplex } from '../../common/grpc-duplex.js';
import type { GrpcService } from '../../common/grpc-server.js';
import { services } from '../../common/protocol.js';
import type { Listener } from '../../runtime/duplex.js';

/** The worker's side of links, as a service for startGrpcServer. */
export function linkService(accept: Listener<RouterMessage, WorkerMessageInput>): GrpcService {
  return { definition: services.Experts, implementation: { Exchange: serveDuplex(accept) } };
}

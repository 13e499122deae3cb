import { serveDuplex } from '../../common/grpc-duplex.js';
import type { GrpcService } from '../../common/grpc-server.js';
import { services } from '../../common/protocol.js';
import { acceptLinks, type LinkServiceOptions } from '../serve.js';

/** The worker's side of all links, as a service for startGrpcServer. */
export function linkService(options: LinkServiceOptions): GrpcService {
  return { definition: services.Experts, implementation: { Exchange: serveDuplex(acceptLinks(options)) } };
}

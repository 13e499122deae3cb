import { type Client, type ClientDuplexStream, Metadata, type ServerDuplexStream } from '@grpc/grpc-js';
import type { Dialer, Duplex, DuplexHandlers, Listener } from '../runtime/duplex.js';
import { namesIn } from './certificate.js';
import { SwitchyardError } from './errors.js';
import type { CoordinatorMessage } from './generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeMessageInput } from './generated/switchyard/v1/NodeMessage.js';
import type { RouterMessageInput } from './generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessage } from './generated/switchyard/v1/WorkerMessage.js';
import { connect } from './grpc-channel.js';
import { clients } from './protocol.js';
import { fromServiceError, toServiceError } from './status.js';
import type { Tls } from './tls.js';

type GrpcStream<In, Out> = ClientDuplexStream<Out, In> | ServerDuplexStream<In, Out>;

/** A gRPC stream as a Duplex. */
abstract class GrpcDuplex<In, Out, Stream extends GrpcStream<In, Out>> implements Duplex<In, Out> {
  readonly peer: string;
  protected over = false;

  constructor(protected readonly stream: Stream) {
    // A connection that is gone does not know it any more.
    this.peer = stream.getPeer();
  }

  get paused(): boolean {
    return this.stream.isPaused();
  }

  listen(handlers: DuplexHandlers<In>): void {
    this.stream.on('data', (message: In) => {
      if (!this.over) handlers.message(message);
    });
    this.stream.on('drain', () => {
      if (!this.over) handlers.drain?.();
    });
    this.stream.on('end', () => {
      if (!this.over) handlers.end();
    });
    this.onFailure((error) => {
      if (this.over) return;
      this.over = true;
      handlers.fail(error);
    });
  }

  write(message: Out, taken: () => void = () => {}): boolean {
    if (!this.over) return this.stream.write(message, taken);
    taken();
    return false;
  }

  pause(): void {
    this.stream.pause();
  }

  resume(): void {
    this.stream.resume();
  }

  end(): void {
    this.stream.end();
  }

  destroy(error?: SwitchyardError): void {
    if (this.over) return;
    this.over = true;
    this.cut(error);
  }

  protected abstract onFailure(failed: (error: SwitchyardError) => void): void;
  protected abstract cut(error: SwitchyardError | undefined): void;
}

class DialedDuplex<In, Out> extends GrpcDuplex<In, Out, ClientDuplexStream<Out, In>> {
  constructor(
    stream: ClientDuplexStream<Out, In>,
    private readonly client: Client,
  ) {
    super(stream);
  }

  protected onFailure(failed: (error: SwitchyardError) => void): void {
    this.stream.on('error', (error) => {
      failed(fromServiceError(error));
      this.client.close();
    });
  }

  protected cut(): void {
    this.stream.cancel();
    this.client.close();
  }
}

class AcceptedDuplex<In, Out> extends GrpcDuplex<In, Out, ServerDuplexStream<In, Out>> {
  /** A call is over when its server has ended it. */
  override end(): void {
    this.over = true;
    super.end();
  }

  protected onFailure(failed: (error: SwitchyardError) => void): void {
    const gone = () => failed(new SwitchyardError('LINK_LOST', 'the other end is gone'));
    this.stream.on('cancelled', gone);
    this.stream.on('error', gone);
  }

  protected cut(error: SwitchyardError | undefined): void {
    if (error === undefined) this.stream.end();
    else this.stream.emit('error', toServiceError(error));
  }
}

/** A dialer whose streams have a connection each, which ends with them. */
function grpcDialer<C extends Client, In, Out>(
  ClientType: Parameters<typeof connect<C>>[0],
  tls: Tls | null,
  open: (client: C, metadata: Metadata) => ClientDuplexStream<Out, In>,
): Dialer<In, Out> {
  return (address, { authorization, ...options }) => {
    const client = connect(ClientType, address, { token: null, tls, ...options });
    const metadata = new Metadata();
    if (authorization !== null) metadata.set('authorization', authorization);
    return new DialedDuplex(open(client, metadata), client);
  };
}

/** Join, from a node to its coordinator. */
export const coordinatorDialer = (tls: Tls | null): Dialer<CoordinatorMessage, NodeMessageInput> =>
  grpcDialer(clients.Coordinator, tls, (client, metadata) => client.Join(metadata));

/** Exchange, from a router to a worker. */
export const workerDialer = (tls: Tls | null): Dialer<WorkerMessage, RouterMessageInput> =>
  grpcDialer(clients.Experts, tls, (client, metadata) => client.Exchange(metadata));

/** The method of a gRPC service whose streams `listener` gets. */
export function serveDuplex<In, Out>(
  listener: Listener<In, Out>,
): (call: ServerDuplexStream<In, Out>) => void {
  return (call) => {
    const header = call.metadata.get('authorization')[0];
    const { sslPeerCertificate } = call.getAuthContext();
    listener(new AcceptedDuplex(call), {
      authorization: header === undefined ? undefined : String(header),
      certificate: namesIn(sslPeerCertificate?.subjectaltname),
    });
  };
}

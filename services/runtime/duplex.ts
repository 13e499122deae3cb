import type { CertificateNames } from '../common/certificate.js';
import type { SwitchyardError } from '../common/errors.js';

/** What one end of a stream hears. After `fail`, and after `destroy`, nothing more is heard. */
export interface DuplexHandlers<In> {
  message(message: In): void;
  /** `write` may go on. */
  drain?(): void;
  /** The other end says no more; all that it said has come. */
  end(): void;
  /** The stream is over: broken, or destroyed by the other end, whose reason a server's client gets. */
  fail(error: SwitchyardError): void;
}

/** One end of a stream of messages both ways, in order. gRPC carries it in production. */
export interface Duplex<In, Out> {
  /** The other end, for logs. */
  readonly peer: string;
  readonly paused: boolean;
  /** To be called once, before anything else happens on the event loop. */
  listen(handlers: DuplexHandlers<In>): void;
  /** False: wait for `drain`. `taken`: the message is copied or will never be sent, so what it refers to is free. */
  write(message: Out, taken?: () => void): boolean;
  /** Hears no messages until `resume`; those that come are held back at the other end. */
  pause(): void;
  resume(): void;
  /** This end says no more. */
  end(): void;
  /** Ends both ways at once. A server's client hears the error. Idempotent. */
  destroy(error?: SwitchyardError): void;
}

export interface DialOptions {
  /** What the caller shows of itself; null: nothing. */
  authorization: string | null;
  /** Of the rows of a message that comes. */
  messageBytesMax: number;
  /** The stream breaks when the other end's host is silent for so long. */
  leaseMs?: number;
  /** The name of the node that is called. Default: it is not known. */
  node?: string;
}

/** Opens a stream of one method to host:port. What cannot be reached is heard as `fail`. */
export type Dialer<In, Out> = (address: string, options: DialOptions) => Duplex<In, Out>;

/** What the opener of a stream shows of itself. */
export interface Caller {
  /** The header, for what the server itself has not checked. */
  authorization: string | undefined;
  certificate: CertificateNames;
}

/** Gets the streams that others open. */
export type Listener<In, Out> = (stream: Duplex<In, Out>, caller: Caller) => void;

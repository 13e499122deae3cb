import { createPrivateKey, X509Certificate } from 'node:crypto';
import { unwatchFile, watchFile } from 'node:fs';
import { isIP, type Server, type Socket } from 'node:net';
import {
  type ConnectionOptions,
  checkServerIdentity,
  connect,
  createSecureContext,
  type SecureContext,
  type SecureContextOptions,
  type TLSSocket,
} from 'node:tls';
import { isDeepStrictEqual } from 'node:util';
import { ServerCredentials } from '@grpc/grpc-js';
import { readBounded } from './bounded-file.js';
import { isForNode, namesIn, tlsFailure, whyUntrusted } from './certificate.js';
import { SwitchyardError } from './errors.js';
import type { Logger } from './log.js';

/** PEM files, and what they do not decide. */
export interface TlsSettings {
  /** Who signs the certificates of servers. */
  ca: string;
  /** The certificate that this process shows, with those between it and its CA, and its key. */
  cert?: string | null | undefined;
  key?: string | null | undefined;
  /** Who signs the certificates of callers: they are asked for. Null: they are not. */
  clientCa?: string | null;
  /** Rows between hosts may travel over UCX as they are. Default: no. */
  allowPlaintextRows?: boolean | undefined;
}

type FileKey = Exclude<keyof TlsSettings, 'allowPlaintextRows'>;

/** What the files held. */
type Pems = Readonly<Partial<Record<FileKey, Buffer>>>;

/** Several times what the certificates of all public CAs have. */
const pemBytesMax = 1024 * 1024;
/** How often it is looked whether a file has changed: links to it, as in a volume of Kubernetes, tell nobody. */
const lookMs = 1_000;
/** A handshake that takes longer is given up. */
export const handshakeMsMax = 10_000;

/**
 * The TLS of a process: its certificate, and whom it trusts. Files that change are read anew for the connections that follow;
 * until all of them fit together, what they held before is kept.
 */
export class Tls {
  private pems: Pems;
  private context: SecureContext;
  private own: Buffer | null;
  private readonly listeners = new Set<() => void>();
  private readonly paths: readonly string[];
  private readonly onFile = () => this.reload();

  /** `prefix`: of the settings that name the files. Throws CONFIG_INVALID for a file that cannot be used. */
  constructor(
    private readonly files: TlsSettings,
    private readonly log: Logger | null = null,
    private readonly prefix: 'tls' | 'etcd' = 'tls',
  ) {
    this.pems = this.read();
    this.context = createSecureContext(this.contextOptions('ca'));
    this.own = ownCertificate(this.pems);
    this.paths = [...new Set(Object.values(files))].filter((path) => typeof path === 'string');
    for (const path of this.paths) watchFile(path, { persistent: false, interval: lookMs }, this.onFile);
  }

  /** Whether callers are asked for certificates. */
  get asksCallers(): boolean {
    return this.pems.clientCa !== undefined;
  }

  /** Whether rows that leave this machine are encrypted whatever carries them. */
  get encryptsRows(): boolean {
    return !this.files.allowPlaintextRows;
  }

  /** When the certificate that this process shows, or the first of those above it, ends; seconds since 1970. Null: it shows none. */
  get notAfterSeconds(): number | null {
    const { cert } = this.pems;
    if (cert === undefined) return null;
    const ends = certificatesIn(cert).map((one) => Date.parse(new X509Certificate(one).validTo));
    return Math.min(...ends) / 1000;
  }

  /** Files are watched no more. */
  close(): void {
    for (const path of this.paths) unwatchFile(path, this.onFile);
  }

  /** Calls `changed` with what a server is to use from now on, each time that the files have changed. */
  onServerContext(changed: (options: SecureContextOptions) => void): void {
    this.listeners.add(() => changed(this.contextOptions('clientCa')));
  }

  /**
   * What a server of this process is made with. A caller without a certificate, or with one that is not trusted, is let in and
   * gets only what needs no credential: so it can be told what is wrong.
   */
  serverOptions() {
    return {
      ...this.contextOptions('clientCa'),
      requestCert: this.asksCallers,
      rejectUnauthorized: false,
      handshakeTimeout: handshakeMsMax,
    };
  }

  /** What a connection to a server on `host` is made with. `node`: whose that is, if it is known. */
  clientOptions(host: string, node?: string): ConnectionOptions {
    return {
      secureContext: this.context,
      host,
      ...(isIP(host) === 0 && { servername: host }),
      // Whoever has the key of this process's own certificate is this process, or one that shares it.
      checkServerIdentity: (_, certificate) => {
        const isNode = node !== undefined && isForNode(node, namesIn(certificate.subjectaltname));
        return isNode || this.own?.equals(certificate.raw)
          ? undefined
          : checkServerIdentity(host, certificate);
      },
    };
  }

  /** Makes a connected socket a TLS connection with a server of HTTP/2, as above. Rejects with why it is not trusted. */
  secure(socket: Socket, host: string, node?: string): Promise<TLSSocket> {
    return new Promise((resolve, reject) => {
      const secured = connect({ ...this.clientOptions(host, node), socket, ALPNProtocols: ['h2'] }, () =>
        resolve(secured),
      );
      secured.on('error', (error) => {
        const why = whyUntrusted(error, host, `${this.keyOf('ca')} (${this.files.ca})`);
        reject(why === null ? error : new Error(tlsFailure + why, { cause: error }));
      });
    });
  }

  private contextOptions(trusted: 'ca' | 'clientCa'): SecureContextOptions {
    const { cert, key, [trusted]: ca } = this.pems;
    return { ca, cert, key, minVersion: 'TLSv1.2' };
  }

  private reload(): void {
    let pems: Pems;
    try {
      pems = this.read();
    } catch (error) {
      this.log?.warn({ event: 'tls-kept', reason: (error as Error).message });
      return;
    }
    // Several files may have changed at once.
    if (isDeepStrictEqual(pems, this.pems)) return;
    this.pems = pems;
    this.context = createSecureContext(this.contextOptions('ca'));
    this.own = ownCertificate(this.pems);
    for (const listener of this.listeners) listener();
    this.log?.info({
      event: 'tls-reloaded',
      validUntil: this.pems.cert && new X509Certificate(this.pems.cert).validTo,
    });
  }

  private read(): Pems {
    const pems: Partial<Record<FileKey, Buffer>> = {};
    for (const file of ['ca', 'cert', 'key', 'clientCa'] as const) {
      const path = this.files[file] ?? null;
      if (path !== null) pems[file] = this.readPem(file, path);
    }
    const { cert, key } = pems;
    if (
      cert !== undefined &&
      key !== undefined &&
      !new X509Certificate(cert).checkPrivateKey(createPrivateKey(key))
    )
      throw this.invalid('key', `it is not the key of ${this.keyOf('cert')}, ${this.files.cert}`);
    return pems;
  }

  private readPem(file: FileKey, path: string): Buffer {
    try {
      const pem = readBounded(path, pemBytesMax);
      if (file === 'key') createPrivateKey(pem);
      else for (const certificate of certificatesIn(pem)) new X509Certificate(certificate);
      return pem;
    } catch (error) {
      throw this.invalid(file, (error as Error).message);
    }
  }

  /** The setting that names a file. */
  private keyOf(file: FileKey): string {
    return `${this.prefix}${file[0]!.toUpperCase()}${file.slice(1)}`;
  }

  private invalid(file: FileKey, reason: string): SwitchyardError {
    const key = this.keyOf(file);
    const value = this.files[file] ?? null;
    const what = file === 'key' ? 'one private key, without a passphrase' : 'certificates';
    const allowed = `a readable PEM file of ${what}`;
    const text = `${key} is ${JSON.stringify(value)}: ${reason}; allowed: ${allowed}`;
    return new SwitchyardError('CONFIG_INVALID', text, { key, value, allowed });
  }
}

/** Handshakes under way at a server; beyond them the oldest makes way. */
const handshakesMax = 256;

/** Bounds the connections of a TLS server whose handshake is not done, and tells of those that failed: who speaks no TLS gets nothing. */
export function guardHandshakes(server: Server, log: Logger): void {
  const open = new Map<string, Socket>();
  const peerOf = ({ remoteAddress, remotePort }: Socket) => `${remoteAddress}:${remotePort}`;
  const refuse = (peer: string, reason: string) => {
    if (open.delete(peer)) log.warn({ event: 'connection-refused', peer, reason });
  };
  server.on('connection', (socket: Socket) => {
    const peer = peerOf(socket);
    open.set(peer, socket);
    // Who does not trust the certificate may leave without a word.
    const left =
      'the caller left before the handshake was done; it may not trust this certificate (its tlsCa)';
    socket.once('close', () => refuse(peer, left));
    if (open.size <= handshakesMax) return;
    const [oldest, waiting] = open.entries().next().value!;
    refuse(oldest, `more than ${handshakesMax} handshakes are under way`);
    waiting.destroy();
  });
  server.on('secureConnection', (socket: TLSSocket) => open.delete(peerOf(socket)));
  server.on('tlsClientError', (error: Error, socket: TLSSocket) => {
    const plain = /http request|wrong version number/.test(error.message);
    // That of a caller who has left has no address any more: its connection's end tells.
    refuse(peerOf(socket), plain ? 'the caller speaks no TLS: its tlsCa is not set' : error.message);
  });
}

function certificatesIn(pem: Buffer): string[] {
  const found = pem.toString('latin1').match(/-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----/gs);
  if (found === null) throw new Error('it holds no certificate');
  return found;
}

/** The certificate that a process shows, as it goes over the wire. */
function ownCertificate({ cert }: Pems): Buffer | null {
  return cert === undefined ? null : new X509Certificate(cert).raw;
}

/** What a configuration says of TLS. */
export type TlsConfig = Readonly<
  Record<'tlsCa' | 'tlsCert' | 'tlsKey', string | null> & {
    tlsClientCa?: string | null;
    allowPlaintextRows?: boolean;
  }
>;

/** The TLS of a process with servers; null: it is not to use it. Throws CONFIG_INVALID for files that cannot be used, and as below. */
export function readTls(config: TlsConfig, log: Logger): Tls | null {
  const files = tlsSettingsOf(config, true);
  return files && new Tls(files, log);
}

/**
 * The files of a configuration; null: it names none. `serves`: of a process with servers. Throws CONFIG_INVALID for some without
 * the others: nothing is sent in the clear because one was forgotten.
 */
export function tlsSettingsOf(config: TlsConfig, serves: boolean): TlsSettings | null {
  const { tlsCa: ca, tlsCert: cert, tlsKey: key, tlsClientCa: clientCa = null, allowPlaintextRows } = config;
  const given = Object.entries({ tlsCa: ca, tlsCert: cert, tlsKey: key, tlsClientCa: clientCa });
  if (given.every(([, path]) => path === null)) return null;
  const shows = serves || cert !== null || key !== null;
  const missing = given.find(
    ([name, path]) => path === null && (name === 'tlsCa' || (shows && name !== 'tlsClientCa')),
  );
  if (ca !== null && missing === undefined) return { ca, cert, key, clientCa, allowPlaintextRows };
  const allowed = serves
    ? 'tlsCa, tlsCert and tlsKey together: a server encrypts what it serves and what it calls'
    : 'tlsCa, and tlsCert and tlsKey together or neither';
  throw new SwitchyardError('CONFIG_INVALID', `${missing![0]} is missing; allowed: ${allowed}`, {
    key: missing![0],
    allowed,
  });
}

/** Of a gRPC server. Connections that stand keep what they were made with. */
export class TlsServerCredentials extends ServerCredentials {
  constructor(tls: Tls) {
    const { requestCert, rejectUnauthorized, handshakeTimeout, ...context } = tls.serverOptions();
    super({ requestCert, rejectUnauthorized, handshakeTimeout }, context);
    tls.onServerContext((options) => this.updateSecureContextOptions(options));
  }

  _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}

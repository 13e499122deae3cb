import type { Socket } from 'node:net';
import { type PeerCertificate, TLSSocket } from 'node:tls';
import type { AccessRole } from './access.js';
import { SwitchyardError } from './errors.js';

/** What a caller's certificate says of it. */
export interface CertificateNames {
  readonly roles: readonly AccessRole[];
  /** The nodes that it is for; a `*` at an end stands for any rest. */
  readonly nodes: readonly string[];
  /** In words, why there is no certificate that counts; null: there is. */
  readonly problem: string | null;
}

/** Of a caller who is asked for no certificate. */
export const noCertificate: CertificateNames = { roles: [], nodes: [], problem: null };

/** The name (URI) among a certificate's alternative names that gives a role. */
export const roleName = (role: AccessRole): string => `switchyard://${role}${role === 'node' ? '/NAME' : ''}`;

/** A name in a text of them, as Node writes it: one that holds a comma or a quote stands in quotes, and is none of ours. */
const uriPattern = /(?:^|, )URI:switchyard:\/\/(?:(client|operator)|node\/([A-Za-z0-9._-]+\*?|\*))(?=, |$)/g;

/** The roles and nodes in a text of alternative names. */
export function namesIn(alternativeNames: string | undefined): CertificateNames {
  const unquoted = (alternativeNames ?? '').replaceAll(/"(?:[^"\\]|\\.)*"/g, '');
  const found = [...unquoted.matchAll(uriPattern)];
  const nodes = found.flatMap(([, , node]) => (node ? [node] : []));
  const roles = found.map(([, role]) => (role ?? 'node') as AccessRole);
  return { roles: [...new Set(roles)], nodes, problem: null };
}

const callers = new WeakMap<Socket, CertificateNames>();

/** What the certificate of a server's caller says. `asked`: whether the server asks for one. */
export function certificateOf(socket: Socket | undefined): CertificateNames {
  if (!(socket instanceof TLSSocket)) return noCertificate;
  const known = callers.get(socket) ?? readCertificate(socket);
  callers.set(socket, known);
  return known;
}

function readCertificate(socket: TLSSocket): CertificateNames {
  const certificate = socket.getPeerCertificate();
  if (socket.authorized) return namesIn(certificate.subjectaltname);
  if (certificate.raw === undefined) return { ...noCertificate, problem: 'it shows no certificate' };
  // A code of OpenSSL, whatever the type says.
  const code = String(socket.authorizationError);
  return {
    ...noCertificate,
    problem: `its certificate ${problems[code] ?? signers[code] ?? `counts for nothing: ${code}`}`,
  };
}

const problems: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: 'has expired',
  CERT_NOT_YET_VALID: 'is not valid yet',
  INVALID_PURPOSE: 'is not for this end of a connection, by its extended key usage',
};
const unknownSigner = 'is not signed by tlsClientCa of the server';
const signers: Readonly<Record<string, string>> = {
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: unknownSigner,
  UNABLE_TO_GET_ISSUER_CERT: unknownSigner,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: unknownSigner,
  SELF_SIGNED_CERT_IN_CHAIN: unknownSigner,
  DEPTH_ZERO_SELF_SIGNED_CERT: unknownSigner,
  CERT_SIGNATURE_FAILURE: unknownSigner,
};

/** Whether a certificate is for the node of that name. */
export function isForNode(name: string, { nodes }: CertificateNames): boolean {
  return nodes.some((pattern) =>
    pattern.endsWith('*') ? name.startsWith(pattern.slice(0, -1)) : pattern === name,
  );
}

/** Throws PERMISSION_DENIED if the certificate is for nodes, and not for the one of that name. */
export function checkNodeName(name: string, certificate: CertificateNames): void {
  const { nodes } = certificate;
  if (nodes.length === 0 || isForNode(name, certificate)) return;
  const allowed = nodes.join(', ');
  const text = `name is ${JSON.stringify(name)}, and the certificate of the node (tlsCert) is for ${allowed}; allowed: a name that it bears as switchyard://node/NAME`;
  throw new SwitchyardError('PERMISSION_DENIED', text, { name, allowed });
}

/** Begins every reason of a connection that TLS did not let be. */
export const tlsFailure = 'TLS: ';

/** Why a server is not trusted; null: the error is of another kind. `ca`: the setting of who is trusted, and its value. */
export function whyUntrusted(error: Error, host: string, ca: string): string | null {
  const { code = '', cert } = error as { code?: string; cert?: PeerCertificate };
  const certificate = `the certificate of ${host}`;
  if (code in problems) return `${certificate} ${problems[code]}; allowed: a valid tlsCert of that server`;
  if (code in signers) return `${certificate} is not signed by ${ca}`;
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID')
    return `${certificate} is for ${cert?.subjectaltname ?? 'no name'}; allowed: an address by one of these, or a tlsCert for ${host}`;
  if (code === 'ERR_SSL_WRONG_VERSION_NUMBER' || code === 'ERR_SSL_PACKET_LENGTH_TOO_LONG')
    return `what listens at ${host} speaks no TLS; allowed: a server with tlsCert, or none of the TLS settings here`;
  return null;
}

import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { isIPv4 } from 'node:net';
import { readBounded } from './bounded-file.js';
import { type CertificateNames, noCertificate, roleName } from './certificate.js';
import { SwitchyardError } from './errors.js';
import { isToken, tokenAllowed } from './token.js';

/** Who may call: each role has a token of its own, or certificates that name it. */
export const accessRoles = ['client', 'node', 'operator'] as const;
export type AccessRole = (typeof accessRoles)[number];

/** The tokens that a server knows. A role without one needs none here. */
export type Tokens = Readonly<Partial<Record<AccessRole, string | null>>>;

/** What a call needs: the credential of a role, the key of a link, or nothing. */
type Need = AccessRole | 'link' | 'nothing';

/** Every gRPC method, by its service, and every HTTP path that needs something else than the operator's credential. */
const needs: readonly (readonly [start: string, need: Need])[] = [
  ['/switchyard.v1.Inference/', 'client'],
  ['/switchyard.v1.Coordinator/', 'node'],
  ['/switchyard.v1.Experts/', 'link'],
  ['/inference.GRPCInferenceService/ServerLive', 'nothing'],
  ['/inference.GRPCInferenceService/ServerReady', 'nothing'],
  ['/inference.GRPCInferenceService/', 'client'],
  ['/grpc.health.v1.Health/', 'nothing'],
  ['/console/feed', 'client'],
  ['/healthz', 'nothing'],
  ['/readyz', 'nothing'],
];

/** What a call of the gRPC method or HTTP path needs. What the table does not name is for operators. */
export function needOf(path: string): Need {
  return needs.find(([start]) => path.startsWith(start))?.[1] ?? 'operator';
}

/** Roles whose credential a call may carry that needs that of `role`. */
const allowedFor = (role: AccessRole): readonly AccessRole[] =>
  role === 'client' ? ['client', 'operator'] : [role];

const digest = (text: string) => createHash('sha256').update(text).digest();

/** RFC 9110: the scheme in any case, and spaces in front of the token. */
const bearerPattern = /^\s*bearer +([\x21-\x7e]+)\s*$/i;

/** Decides who may call a server: by bearer tokens of which it keeps digests, and by the names in certificates. */
export class Access {
  private readonly digests: ReadonlyMap<AccessRole, Buffer>;

  /** `certificates`: whether callers are asked for them; then no role is open to all. */
  constructor(
    tokens: Tokens,
    private readonly certificates = false,
  ) {
    this.digests = new Map(
      accessRoles.flatMap((role) => {
        const token = tokens[role] ?? null;
        return token === null ? [] : [[role, digest(token)] as const];
      }),
    );
  }

  has(role: AccessRole): boolean {
    return this.certificates || this.digests.has(role);
  }

  /** Whether a call of the method or path needs no credential here. A link's key is checked by the service. */
  isOpen(path: string): boolean {
    const need = needOf(path);
    return need === 'nothing' || (need !== 'link' && !this.has(need));
  }

  /**
   * Throws UNAUTHENTICATED if the `authorization` header carries no token that is known here and the certificate names no
   * role, PERMISSION_DENIED if both are of roles that may not call the method or path.
   */
  check(path: string, header: unknown, certificate: CertificateNames = noCertificate): void {
    const roles = this.rolesOf(header, certificate);
    if (this.allows(path, roles)) return;
    const allowed = this.allowedText(needOf(path));
    if (roles.length === 0) {
      const text = `the call carries no valid credential${this.problemOf(certificate)}; allowed: ${allowed}`;
      throw new SwitchyardError('UNAUTHENTICATED', text, { method: path, allowed });
    }
    const token = this.roleOf(header);
    const carried = [
      ...(token === null ? [] : [`the ${token} token`]),
      ...certificate.roles.map((role) => `a certificate with ${roleName(role)}`),
    ];
    const text = `the call carries ${carried.join(' and ')}; allowed: ${allowed}`;
    throw new SwitchyardError('PERMISSION_DENIED', text, { method: path, role: roles[0]!, allowed });
  }

  /** The roles that a call proves: by the token in the `authorization` header, and by the names in its certificate. */
  rolesOf(header: unknown, certificate: CertificateNames = noCertificate): readonly AccessRole[] {
    const token = this.roleOf(header);
    return token === null ? certificate.roles : [token, ...certificate.roles];
  }

  /** Whether a caller of these roles may call the method or path. */
  allows(path: string, roles: readonly AccessRole[]): boolean {
    if (this.isOpen(path)) return true;
    const need = needOf(path);
    return need !== 'link' && roles.some((role) => allowedFor(need as AccessRole).includes(role));
  }

  /** A code of `text` that only who has the token of `role` can make; null: the role has none. */
  sign(role: AccessRole, text: string): string | null {
    const key = this.digests.get(role);
    return key === undefined ? null : createHmac('sha256', key).update(text).digest('base64url');
  }

  private allowedText(need: Need): string {
    if (need === 'link') return 'the key of a link, which the coordinator gives to routers';
    const roles = allowedFor(need as AccessRole);
    const tokens = roles.filter((role) => this.digests.has(role));
    const ways = tokens.length === 0 ? [] : [`the ${tokens.join(' or the ')} token`];
    if (this.certificates)
      ways.push(
        `a certificate (tlsCert) that tlsClientCa of the server signs, with the name ${roles.map(roleName).join(' or ')}`,
      );
    return ways.join(', or ');
  }

  private problemOf({ problem }: CertificateNames): string {
    if (!this.certificates) return '';
    return `: ${problem ?? 'its certificate names no role'}`;
  }

  /** Digests of equal length are compared in constant time, and with every role's: the time taken tells nothing about a token. */
  private roleOf(header: unknown): AccessRole | null {
    const given = digest((typeof header === 'string' && bearerPattern.exec(header)?.[1]) || '');
    const equal = [...this.digests].filter(([, expected]) => timingSafeEqual(given, expected));
    return equal[0]?.[0] ?? null;
  }
}

/** Whether only processes of this machine can reach a server bound to `host`. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'));
}

/** Refuses to let other machines call what `paths` name without credentials, unless `insecure` says so. Throws CONFIG_INVALID. */
export function assertBindAllowed(
  host: string,
  access: Access,
  insecure: boolean,
  paths: readonly string[],
): void {
  if (isLoopback(host) || insecure) return;
  const needed = new Set(paths.map(needOf));
  const missing = accessRoles.filter((role) => needed.has(role) && !access.has(role));
  if (missing.length === 0) return;
  const files = missing.map((role) => `--${role}-token-file`).join(' and ');
  const allowed = `a loopback address, or ${files}, or --tls-client-ca, or --insecure`;
  throw new SwitchyardError(
    'CONFIG_INVALID',
    `host is ${JSON.stringify(host)}, which other machines can reach, and there is no ${missing.join(', no ')} token; allowed: ${allowed}`,
    { key: 'host', value: host, allowed },
  );
}

type TokenKey = `${AccessRole}Token` | `${AccessRole}TokenFile`;

/** The tokens of a server's configuration. Throws CONFIG_INVALID for a file that holds none, and for two roles with one token. */
export function readTokens(config: Readonly<Partial<Record<TokenKey, string | null>>>): Required<Tokens> {
  const read = (role: AccessRole) =>
    readSecret(config[`${role}Token`] ?? null, `${role}TokenFile`, config[`${role}TokenFile`] ?? null);
  const tokens = { client: read('client'), node: read('node'), operator: read('operator') };
  for (const [index, role] of accessRoles.entries()) {
    const other = accessRoles.slice(0, index).find((before) => tokens[before] === tokens[role]);
    if (tokens[role] === null || other === undefined) continue;
    const allowed = 'a token of its own for each role';
    const text = `${role}Token is (hidden), which is the ${other} token too; allowed: ${allowed}`;
    throw new SwitchyardError('CONFIG_INVALID', text, { key: `${role}Token`, allowed });
  }
  return tokens;
}

/** The token that a command presents: given as it is, or as a file that holds nothing else. */
export function readToken(config: { token: string | null; tokenFile: string | null }): string | null {
  return readSecret(config.token, 'tokenFile', config.tokenFile);
}

/** Far more than a token has, with room for blanks. */
const tokenFileBytesMax = 64 * 1024;

function readSecret(given: string | null, fileKey: string, path: string | null): string | null {
  if (given !== null || path === null) return given;
  let token: string;
  try {
    token = readBounded(path, tokenFileBytesMax).toString().trim();
  } catch (error) {
    throw tokenFileError(fileKey, path, (error as Error).message);
  }
  if (isToken(token)) return token;
  const isWord = /^[\x21-\x7e]+$/.test(token);
  const reason = isWord
    ? `its token has ${token.length} characters`
    : 'it holds no token, or more than one word';
  throw tokenFileError(fileKey, path, reason);
}

function tokenFileError(key: string, path: string, reason: string): SwitchyardError {
  const allowed = `a readable file with ${tokenAllowed}`;
  return new SwitchyardError(
    'CONFIG_INVALID',
    `${key} is ${JSON.stringify(path)}: ${reason}; allowed: ${allowed}`,
    { key, value: path, allowed },
  );
}

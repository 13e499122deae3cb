import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { isIPv4 } from 'node:net';
import { SwitchyardError } from './errors.js';

/** Whether only processes of this machine can reach a server bound to `host`. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'));
}

/**
 * UCX opens ports of its own on every network device, unless it is told which, and believes whoever speaks its handshake
 * there: what follows can end the process. A process whose server stays on loopback reaches its peers by shared memory,
 * which the system keeps to one user, and opens no port. The environment's own UCX_TLS and UCX_NET_DEVICES are left as
 * they are.
 */
export function keepUcxWithin(host: string): void {
  if (!isLoopback(host)) return;
  process.env.UCX_TLS ??= '^tcp';
  process.env.UCX_NET_DEVICES ??= 'lo';
}

/** Refuses to listen for other machines without a token, unless `insecure` says so. */
export function assertBindAllowed(host: string, token: string | null, insecure: boolean): void {
  if (isLoopback(host) || token !== null || insecure) return;
  throw new SwitchyardError(
    'CONFIG_INVALID',
    `host is ${JSON.stringify(host)}, which other machines can reach, and there is no token; ` +
      'allowed: a loopback address, or --token-file or SWITCHYARD_TOKEN, or --insecure',
    { key: 'host', value: host, allowed: 'a loopback address, a token, or --insecure' },
  );
}

/** The access token of a server or a client: given as it is, or as a file that holds nothing else. */
export function readToken(config: { token: string | null; tokenFile: string | null }): string | null {
  if (config.token !== null) return config.token;
  if (config.tokenFile === null) return null;
  let token: string;
  try {
    token = readFileSync(config.tokenFile, 'utf8').trim();
  } catch (error) {
    throw tokenFileError(config.tokenFile, (error as Error).message);
  }
  if (!/^[\x21-\x7e]+$/.test(token))
    throw tokenFileError(config.tokenFile, 'it holds no token, or more than one word');
  return token;
}

function tokenFileError(path: string, reason: string): SwitchyardError {
  const allowed = 'a readable file with one word of printable ASCII';
  return new SwitchyardError(
    'CONFIG_INVALID',
    `tokenFile is ${JSON.stringify(path)}: ${reason}; allowed: ${allowed}`,
    {
      key: 'tokenFile',
      value: path,
      allowed,
    },
  );
}

const digest = (text: string) => createHash('sha256').update(text).digest();

/** RFC 9110: the scheme in any case, and spaces in front of the token. */
const bearerPattern = /^\s*bearer +([\x21-\x7e]+)\s*$/i;

/**
 * Returns a check of an `authorization` header. Hashes of equal length are compared in constant time,
 * so that the time taken tells nothing about the token.
 */
export function bearerCheck(token: string): (header: unknown) => boolean {
  const expected = digest(token);
  return (header) => {
    const [, given] = (typeof header === 'string' && bearerPattern.exec(header)) || [];
    return given !== undefined && timingSafeEqual(digest(given), expected);
  };
}

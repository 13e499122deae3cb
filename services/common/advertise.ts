import { isIPv6 } from 'node:net';
import { hostname } from 'node:os';
import { isWildcard } from './address.js';
import { SwitchyardError } from './errors.js';

/**
 * host:port under which other nodes reach a server bound to `host`: `advertiseHost` if it is given, else the host
 * itself, or this machine's name if the server listens on all addresses.
 */
export function advertised(host: string, port: number, advertiseHost: string | null): string {
  const shown = advertiseHost ?? (isWildcard(host) ? hostname() : host);
  return `${isIPv6(shown) ? `[${shown}]` : shown}:${port}`;
}

/** The same for a server of HTTP that listens at `url`. */
export function advertisedUrl(host: string, url: string, advertiseHost: string | null): string {
  const { protocol, port } = new URL(url);
  return `${protocol}//${advertised(host, Number(port), advertiseHost)}`;
}

/** What a call to the address that `node` advertises failed with: where its name does not resolve, also what to change. */
export function adviseAdvertiseHost(error: SwitchyardError, node: string): SwitchyardError {
  if (!('unresolved' in error.details)) return error;
  const text = `${error.message}; start ${node} with --advertise-host and a host that this machine can reach`;
  return new SwitchyardError(error.code, text, error.details, { cause: error });
}

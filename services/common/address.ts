import { isIPv4, isIPv6 } from 'node:net';
import { invalidArgument } from './errors.js';

export const addressAllowed =
  'host:port without a scheme, such as 10.0.0.1:7070, node-a:7070 or [fd00::1]:7070, with a port from 1 to 65535';
export const hostAllowed =
  'a host name or an IP address under which others reach this machine, without scheme, port and brackets';

const namePattern = /^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$/;
const wildcards: ReadonlySet<string> = new Set(['0.0.0.0', '::']);

/** Whether a server bound to `host` listens on all addresses: no client can connect to such a host. */
export function isWildcard(host: string): boolean {
  return wildcards.has(host);
}

/** Whether `text` is a host name, an IPv4 address, or an IPv6 address without brackets. */
export function isHost(text: string): boolean {
  if (isIPv4(text) || isIPv6(text)) return true;
  // Resolvers take digits and dots for an address: 10.1 would be 10.0.0.1, and 10.0.0.256 is nothing.
  return text.length <= 253 && namePattern.test(text) && !/^\d+\.[\d.]*$/.test(text);
}

/** Whether `text` is host:port; an IPv6 address stands in brackets. */
export function isAddress(text: string): boolean {
  const [, bracketed, host, port] = /^(?:\[(.+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text) ?? [];
  if (port === undefined || Number(port) < 1 || Number(port) > 65_535) return false;
  return bracketed === undefined ? isHost(host!) : isIPv6(bracketed);
}

/** The host of host:port, without the brackets of an IPv6 address. */
export function hostOf(address: string): string {
  return address.slice(0, address.lastIndexOf(':')).replace(/^\[(.*)\]$/, '$1');
}

/** The address as it is. Throws INVALID_ARGUMENT, naming `field`, for what is not host:port. */
export function parseAddress(address: string, field = 'address'): string {
  if (typeof address === 'string' && isAddress(address)) return address;
  throw invalidArgument(field, address, addressAllowed);
}

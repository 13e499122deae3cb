import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';

const pattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const hostLengthMax = 40;

export const nodeNameAllowed = 'letters, digits, ".", "_" and "-", at most 63, the first a letter or digit';

export function isNodeName(name: string): boolean {
  return pattern.test(name);
}

/**
 * A name for people to read, which no other node has: role, machine and chance. The process id would not do, since it
 * is 1 in every container.
 */
export function defaultNodeName(role: 'router' | 'worker', host = hostname()): string {
  const [machine = ''] = host.replace(/[^A-Za-z0-9.]+/g, '-').split('.');
  const shown = machine.slice(0, hostLengthMax).replace(/^-|-$/g, '');
  return [role, shown, randomBytes(4).toString('hex')].filter((part) => part !== '').join('-');
}

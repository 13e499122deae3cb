import { readFileSync, readlinkSync } from 'node:fs';
import type { UcxEndInput } from '../../common/generated/switchyard/v1/UcxEnd.js';

/** Names of what an end of a channel shares with others of its machine; empty where the system does not tell. */
export type Namespaces = Required<Pick<UcxEndInput, 'ipcNamespace' | 'networkNamespace'>>;

/** Of this process. */
export const ownNamespaces: Namespaces = (() => {
  try {
    const machine = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    const named = (kind: string) => `${machine} ${readlinkSync(`/proc/self/ns/${kind}`)}`;
    return { ipcNamespace: named('ipc'), networkNamespace: named('net') };
  } catch {
    return { ipcNamespace: '', networkNamespace: '' };
  }
})();

/**
 * Whether two ends can share memory although neither can wake the other there: UCX does that by a Unix socket with an abstract address, which
 * belongs to a network namespace.
 */
export function wakesNobody(a: Namespaces, b: Namespaces): boolean {
  if (!a.ipcNamespace || !a.networkNamespace || !b.networkNamespace) return false;
  return a.ipcNamespace === b.ipcNamespace && a.networkNamespace !== b.networkNamespace;
}

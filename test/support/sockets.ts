import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

export interface ListeningSocket {
  /** Of the local end as the kernel writes it: 0100007F is 127.0.0.1. */
  address: string;
  port: number;
}

/** The TCP sockets that a process listens on. */
export function listeningSockets(pid: number): ListeningSocket[] {
  const inodes = new Set(openFiles(pid).map((target) => /^socket:\[(\d+)\]$/.exec(target)?.[1]));
  const rows = ['tcp', 'tcp6'].flatMap((table) =>
    readFileSync(`/proc/${pid}/net/${table}`, 'utf8').split('\n').slice(1),
  );
  return rows
    .map((row) => row.trim().split(/\s+/))
    .filter((row) => row[3] === '0A' && inodes.has(row[9]))
    .map((row) => {
      const [address = '', port = ''] = row[1]!.split(':');
      return { address, port: Number.parseInt(port, 16) };
    });
}

/** What the file descriptors of a process stand for. */
export function openFiles(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
    } catch {
      // Closed since it was listed.
      return [];
    }
  });
}

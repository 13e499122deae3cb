import { readFileSync } from 'node:fs';

/** Seconds of a core that a process has taken: user and system, in ticks of 10 ms. */
export function cpuSeconds(pid: number): number {
  const [, fields = ''] = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ');
  const [user, system] = fields.split(' ').slice(11, 13);
  return (Number(user) + Number(system)) / 100;
}

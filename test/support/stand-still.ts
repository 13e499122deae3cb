import { readdir, readFile } from 'node:fs/promises';
import { until } from './until.js';

interface Child {
  readonly pid?: number | undefined;
  kill(signal: 'SIGSTOP'): unknown;
}

/** Stops a process by SIGSTOP; resolves when none of its threads runs any more, which is some time after the signal was sent. */
export async function standStill(child: Child): Promise<void> {
  child.kill('SIGSTOP');
  const threads = `/proc/${child.pid}/task`;
  const states = async () => {
    const stats = (await readdir(threads)).map((thread) => readFile(`${threads}/${thread}/stat`, 'utf8'));
    // Behind the name, which may hold anything but ends with the last parenthesis.
    return (await Promise.all(stats)).map((stat) => stat.slice(stat.lastIndexOf(')') + 2)[0]);
  };
  await until(states, (all) => all.every((state) => state === 'T'));
}

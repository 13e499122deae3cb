import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { builtFile } from '../native/locate.js';
import type { LinkEndOptions, LinkEndStarted, LinkRates, LinkTask, LinkUsage } from './link-end.js';

export type { LinkEndOptions };

/** One end of a link in a process of its own. */
export class LinkEnd {
  readonly started: Promise<LinkEndStarted>;

  constructor(private readonly child: ChildProcess) {
    child.setMaxListeners(0);
    this.started = this.heard<LinkEndStarted>();
  }

  /** Of a router's end. */
  run(task: LinkTask): Promise<LinkRates> {
    return this.ask<LinkRates>(task);
  }

  /** What the process used since it was last asked. */
  usage(): Promise<LinkUsage> {
    return this.ask<LinkUsage>('usage');
  }

  close(): void {
    this.child.kill();
  }

  private ask<T>(question: LinkTask | 'usage'): Promise<T> {
    this.child.send(question);
    return this.heard<T>();
  }

  private async heard<T>(): Promise<T> {
    const [message] = await Promise.race([
      once(this.child, 'message'),
      once(this.child, 'exit').then(([code]) => {
        throw new Error(`an end of the link ended with ${code}`);
      }),
    ]);
    return message as T;
  }
}

/** `ucxTransports`: UCX_TLS of the process, or null for what the environment says. */
export function startLinkEnd(options: LinkEndOptions, ucxTransports: string | null): LinkEnd {
  const path = builtFile('bench', 'link-end.js');
  const env = ucxTransports === null ? process.env : { ...process.env, UCX_TLS: ucxTransports };
  return new LinkEnd(fork(path, [JSON.stringify(options)], { env }));
}

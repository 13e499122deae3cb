/** Processes of a cluster that a check starts and ends, and what their logs say. */

import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { waitMsMax } from './checks.mjs';

export class LocalProcesses {
  #started = [];
  #events = [];

  /** `root`: of the package whose build runs. Resolves when the process listens. */
  async start(root, role, name, flags) {
    const module = pathToFileURL(join(root, 'dist', 'services', 'cli', 'local-process.js')).href;
    const { LocalProcess, parseLine } = await import(module);
    const all = { name, port: 0, metricsPort: 0, threads: 1, ...flags };
    const child = new LocalProcess(role, name, all, {}, (_, text) => {
      const line = parseLine(text);
      if (line !== null) this.#events.push({ ...line, name, atMs: performance.now() });
    });
    this.#started.push(child);
    const { address, metricsUrl } = await child.listening;
    return { name, address, port: Number(address.split(':')[1]), metricsUrl, child };
  }

  /** What the logs of processes of this name said of an event, since then. */
  events(event, { name = null, sinceMs = 0 } = {}) {
    return this.#events.filter(
      (line) => line.event === event && line.atMs >= sinceMs && (name === null || line.name === name),
    );
  }

  /** Resolves with the first such event. */
  async event(event, of = {}) {
    for (const endMs = performance.now() + waitMsMax; performance.now() < endMs; ) {
      const [found] = this.events(event, of);
      if (found !== undefined) return found;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const last = this.#started.flatMap(({ name, recentLines }) =>
      recentLines.slice(-5).map((line) => `${name}: ${line}`),
    );
    throw new Error(
      `in ${waitMsMax / 1000} s no event ${event} of ${JSON.stringify(of)}\n${last.join('\n')}`,
    );
  }

  async stop() {
    await Promise.all(this.#started.map((child) => child.stop(10_000)));
  }
}

import type { ServerResponse } from 'node:http';
import { SwitchyardError } from '../../common/errors.js';
import type { ConsoleState } from './wire.js';

/** Pages at once. */
export const viewersMax = 64;

type Part = keyof ConsoleState;

/**
 * The state as a stream of server-sent events: everything first, then what has changed. What is sent is encoded once for all. Who does not read as
 * fast gets no changes meanwhile, and everything again when it does: nothing queues.
 */
export class Feed {
  /** By part and key, as JSON: what those know who keep up. */
  private readonly told = new Map<Part, Map<string, string>>();
  private readonly viewers = new Map<ServerResponse, { behind: boolean }>();
  private everything: string | null = null;

  /** Whether anybody looks. */
  get watched(): boolean {
    return this.viewers.size > 0;
  }

  /** Throws RESOURCE_EXHAUSTED if too many look already. What was published last is told at once. */
  accept(response: ServerResponse): void {
    if (this.viewers.size >= viewersMax) {
      const text = `${viewersMax} pages are open; allowed: at most ${viewersMax}`;
      throw new SwitchyardError('RESOURCE_EXHAUSTED', text, { allowed: viewersMax });
    }
    const viewer = { behind: false };
    this.viewers.set(response, viewer);
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    response.on('drain', () => {
      if (!viewer.behind) return;
      viewer.behind = false;
      response.write(this.whole());
    });
    response.on('close', () => this.viewers.delete(response));
    response.write(this.whole());
  }

  publish(state: ConsoleState): void {
    const change = message('change', this.changes(state));
    if (change === null) return;
    this.everything = null;
    for (const [response, viewer] of this.viewers) {
      if (response.writableNeedDrain) viewer.behind = true;
      else response.write(change);
    }
  }

  private whole(): string {
    this.everything ??= message('state', this.told) ?? '';
    return this.everything;
  }

  private changes(state: ConsoleState): Map<Part, Map<string, string>> {
    const changes = new Map<Part, Map<string, string>>();
    for (const [part, now] of Object.entries(state) as [Part, Record<string, unknown>][]) {
      const before = this.told.get(part) ?? new Map<string, string>();
      const changed = new Map<string, string>();
      for (const [key, value] of Object.entries(now)) {
        const json = JSON.stringify(value);
        if (before.get(key) !== json) changed.set(key, json);
      }
      for (const key of before.keys()) if (!Object.hasOwn(now, key)) changed.set(key, 'null');
      for (const [key, json] of changed) {
        if (json === 'null') before.delete(key);
        else before.set(key, json);
      }
      this.told.set(part, before);
      if (changed.size > 0) changes.set(part, changed);
    }
    return changes;
  }
}

/** Null: there is nothing to tell. */
function message(
  event: 'state' | 'change',
  parts: ReadonlyMap<Part, ReadonlyMap<string, string>>,
): string | null {
  if (parts.size === 0) return null;
  const bodies = [...parts].map(([part, values]) => {
    const entries = [...values].map(([key, json]) => `${JSON.stringify(key)}:${json}`);
    return `"${part}":{${entries.join(',')}}`;
  });
  return `event: ${event}\ndata: {${bodies.join(',')}}\n\n`;
}

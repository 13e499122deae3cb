import type { Logger } from '../common/log.js';
import type { EventLog } from './event-log.js';

/** What a simulated process logs becomes part of what happened. */
export function simulatedLogger(log: EventLog, name: string): Logger {
  const line = (level: string) => (fields: Record<string, unknown>) => {
    const { event, ...rest } = fields;
    log.add(name, `${level} ${String(event)} ${JSON.stringify(rest)}`);
  };
  const logger = { debug: () => {}, info: line('-'), warn: line('!'), error: line('!!') };
  return logger as unknown as Logger;
}

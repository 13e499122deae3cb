import type { Logger } from './log.js';
import { counter, type Registry } from './metrics.js';

/** To be told of a message of a kind that this version does not know. */
export type OnUnknown = (stream: 'control' | 'link') => void;

/** A newer peer may say more than this version understands. That is counted, the first time logged, and ignored. */
export function unknownKinds(registry: Registry, log: Logger): OnUnknown {
  const ignored = counter(
    registry,
    'ignored_messages_total',
    'Messages of a kind that this version does not know.',
    ['stream'] as const,
  );
  const logged = new Set<string>();
  return (stream) => {
    ignored.inc({ stream });
    if (logged.has(stream)) return;
    logged.add(stream);
    log.warn({ event: 'unknown-message', stream });
  };
}

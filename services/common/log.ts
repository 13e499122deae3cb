import { type Logger, pino } from 'pino';

export type { Logger } from 'pino';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof logLevels)[number];

/** Characters that wait for a reader. Lines beyond are dropped, and counted. */
const waitingMax = 1 << 18;

/**
 * JSON lines on standard output, one per event. Callers give `event` (kebab-case) and, where a batch is
 * concerned, `batch`: `log.info({ event: 'batch-complete', batch, tokens })`. A logged `err` keeps the
 * code and the details of a SwitchyardError. No caller waits for who reads them.
 */
export function createLogger(role: string, name: string, level: LogLevel = 'info'): Logger {
  const output = pino.destination({ fd: 1, sync: false, maxLength: waitingMax });
  const log = pino(
    {
      level,
      base: { role, name, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: pino.stdSerializers.errWithCause },
    },
    output,
  );
  let lines = 0;
  output.on('drop', () => {
    lines += 1;
  });
  output.on('drain', () => {
    if (lines === 0) return;
    const dropped = lines;
    lines = 0;
    log.warn({ event: 'log-lines-dropped', lines: dropped });
  });
  // Whoever read it, or the terminal, may be gone: the rest is done, and ended in order, all the same.
  output.on('error', () => {
    output.write = () => true;
    output.destroy();
  });
  return log;
}

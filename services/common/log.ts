import { type Logger, pino } from 'pino';

export type { Logger } from 'pino';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof logLevels)[number];

/**
 * JSON lines on standard output, one per event. Callers give `event` (kebab-case) and, where a batch is
 * concerned, `batch`: `log.info({ event: 'batch-complete', batch, tokens })`. A logged `err` keeps the
 * code and the details of a SwitchyardError.
 */
export function createLogger(role: string, name: string, level: LogLevel = 'info'): Logger {
  const output = pino.destination({ fd: 1, sync: true });
  // Whoever read it, or the terminal, may be gone: what is left is to be ended in order all the same.
  output.on('error', () => {});
  return pino(
    {
      level,
      base: { role, name, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: pino.stdSerializers.errWithCause },
    },
    output,
  );
}

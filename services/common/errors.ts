import { status } from '@grpc/grpc-js';

/** Every error code of the product and the gRPC status it travels as. docs/PROTOCOL.md explains each. */
const statusOf = {
  INVALID_ARGUMENT: status.INVALID_ARGUMENT,
  NON_FINITE: status.INVALID_ARGUMENT,
  CONFIG_INVALID: status.INVALID_ARGUMENT,
  MODEL_INVALID: status.FAILED_PRECONDITION,
  MODEL_MISMATCH: status.FAILED_PRECONDITION,
  UNKNOWN_LAYER: status.NOT_FOUND,
  NOT_FOUND: status.NOT_FOUND,
  NAME_TAKEN: status.ALREADY_EXISTS,
  TOO_LARGE: status.RESOURCE_EXHAUSTED,
  RESOURCE_EXHAUSTED: status.RESOURCE_EXHAUSTED,
  NOT_READY: status.UNAVAILABLE,
  NOT_LEADING: status.UNAVAILABLE,
  WORKER_LOST: status.UNAVAILABLE,
  ROUTER_LOST: status.UNAVAILABLE,
  LINK_LOST: status.UNAVAILABLE,
  DEVICE_LOST: status.UNAVAILABLE,
  DRAINING: status.UNAVAILABLE,
  EXPERT_NOT_HERE: status.FAILED_PRECONDITION,
  UNAUTHENTICATED: status.UNAUTHENTICATED,
  PERMISSION_DENIED: status.PERMISSION_DENIED,
  DEADLINE_EXCEEDED: status.DEADLINE_EXCEEDED,
  CANCELLED: status.CANCELLED,
  CLIENT_STALLED: status.ABORTED,
  DATA_LOSS: status.DATA_LOSS,
  SLAB_RELEASED: status.INTERNAL,
  INTERNAL: status.INTERNAL,
} as const;

export type ErrorCode = keyof typeof statusOf;

/** Names and values that make the error exact: field, value, allowed, worker, layer, expert. */
export type ErrorDetails = Readonly<Record<string, string | number | boolean | null>>;

/** The one error class. `message` says what was wrong, the value seen and the value allowed. */
export class SwitchyardError extends Error {
  override readonly name = 'SwitchyardError';

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly details: ErrorDetails = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
  }

  get grpcStatus(): status {
    return statusOf[this.code];
  }
}

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === 'string' && Object.hasOwn(statusOf, value);
}

/** An argument outside what is allowed: names the field, the value and the allowed values. */
export function invalidArgument(field: string, value: unknown, allowed: string): SwitchyardError {
  const shown = typeof value === 'string' ? quoted(value) : shownNumber(value);
  return new SwitchyardError('INVALID_ARGUMENT', `${field} is ${shown}; allowed: ${allowed}`, {
    field,
    value: shown,
    allowed,
  });
}

/** Whole numbers of 64 bits are read as numbers, which may be rounded beyond 2^53: they are not told as if they were exact. */
export function shownNumber(value: unknown): string {
  if (!Number.isInteger(value) || Number.isSafeInteger(value)) return String(value);
  const { MAX_SAFE_INTEGER: max } = Number;
  return (value as number) > 0 ? `more than ${max}` : `less than ${-max}`;
}

/** Something above a limit: names it, its value, the limit, and the setting of the node that allows more; null: none does. */
export function overLimit(
  code: 'TOO_LARGE' | 'RESOURCE_EXHAUSTED',
  field: string,
  value: number,
  allowed: number,
  by: { setting: string; node: string } | null,
): SwitchyardError {
  const whose = by === null ? '' : `, by ${by.setting} of ${by.node}`;
  const text = `${field} is ${value}; allowed: at most ${allowed}${whose}`;
  return new SwitchyardError(code, text, { field, value, allowed, ...by });
}

const quotedCharactersMax = 200;

/** A text as errors show it, which may come from anybody: in quotes, and cut. */
export function quoted(text: string): string {
  return text.length > quotedCharactersMax
    ? `${JSON.stringify(text.slice(0, quotedCharactersMax))}… (${text.length} characters)`
    : JSON.stringify(text);
}

/** Paths are shown whole as a rule. */
const jsonCharactersMax = 1_000;

/** JSON has no NaN and no infinity: they are marked on the way, and stand there without quotes. */
const markNumber = (_: string, part: unknown) =>
  typeof part === 'number' && !Number.isFinite(part) ? `\0${part}` : part;

/** Characters that steer a terminal, and those that have text read as another, as by turning the direction of writing. */
export const unshowable = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u;
const allUnshowable = new RegExp(unshowable, 'gu');
const codeOf = (character: string) =>
  character.replace(/./gs, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);

/** A value of a file as errors show it: as JSON, with NaN and Infinity as they are, without characters that are not shown, and cut. */
export function shownJson(value: unknown): string {
  let text: string | undefined;
  try {
    text = JSON.stringify(value, markNumber)
      ?.replace(/"\\u0000(NaN|-?Infinity)"/g, '$1')
      .replace(allUnshowable, codeOf);
  } catch {
    // YAML has names for its parts, so one may hold itself.
    return 'what cannot be shown as JSON';
  }
  if (text === undefined) return 'missing';
  return text.length > jsonCharactersMax
    ? `${text.slice(0, jsonCharactersMax)}… (${text.length} characters)`
    : text;
}

/** Any thrown value as a SwitchyardError. Errors of the addon keep their code. */
export function asSwitchyardError(thrown: unknown): SwitchyardError {
  if (thrown instanceof SwitchyardError) return thrown;
  const code = (thrown as { code?: unknown } | null)?.code;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new SwitchyardError(isErrorCode(code) ? code : 'INTERNAL', message, {}, { cause: thrown });
}

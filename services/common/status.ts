import { Metadata, type StatusObject, status } from '@grpc/grpc-js';
import { tlsFailure } from './certificate.js';
import {
  asSwitchyardError,
  type ErrorCode,
  type ErrorDetails,
  isErrorCode,
  SwitchyardError,
} from './errors.js';

const codeKey = 'switchyard-code';
const detailsKey = 'switchyard-details';

/** Status and trailers travel in one HTTP/2 header block, which peers bound at 64 KiB. */
const messageCharactersMax = 4096;
const detailsCharactersMax = 8192;

/** What a status without a code of ours means: it comes from gRPC itself, or from another server. */
const codeOfStatus: Partial<Record<status, ErrorCode>> = {
  [status.CANCELLED]: 'CANCELLED',
  [status.INVALID_ARGUMENT]: 'INVALID_ARGUMENT',
  [status.DEADLINE_EXCEEDED]: 'DEADLINE_EXCEEDED',
  [status.RESOURCE_EXHAUSTED]: 'RESOURCE_EXHAUSTED',
  [status.UNAVAILABLE]: 'LINK_LOST',
  [status.DATA_LOSS]: 'DATA_LOSS',
  [status.UNAUTHENTICATED]: 'UNAUTHENTICATED',
  [status.PERMISSION_DENIED]: 'PERMISSION_DENIED',
};

/** What grpc-js says of a host name that the system's resolver does not know. */
const unresolvedPattern = /^Name resolution failed for target (?:dns:)?(\S+)$/;

/** What grpc-js says of an address that it cannot connect to: why, among a time and notes of its own. */
const unconnectedPattern =
  /^No connection established\. Last error: (?:Error: )?(.*?)(?: \(\d{4}-[^()]*Z\))?\. Resolution note: /s;

/** Why there is no connection to a server that is not one of gRPC. */
export const speaksNoGrpc = 'what listens there does not speak gRPC; it may be a metrics port';

/** Reasons in the words of grpc-js, and what they mean. */
const meanings: Readonly<Record<string, string>> = {
  'Protocol error': speaksNoGrpc,
  'Failed to connect':
    'the server ended the connection without a word; it may want TLS (tlsCa; for etcd, etcdCa)',
};

/** Whether a connection was not made because this end does not trust the server. */
export function isUntrusted({ code, details }: SwitchyardError): boolean {
  return code === 'UNAUTHENTICATED' && details.peer === 'server';
}

/** Who has the methods of a service. */
const whoServes: Readonly<Record<string, string>> = {
  'switchyard.v1.Inference': 'a coordinator or a router',
  'switchyard.v1.Operator': 'a coordinator',
  'switchyard.v1.Coordinator': 'a coordinator',
  'switchyard.v1.Experts': 'a worker',
  'etcdserverpb.KV': 'etcd',
};

/** What grpc-js, and servers in other languages, say of a method that they do not have. */
const methodPattern = /\/?([\w.]+)\/\w+$/;

/** Whether a server that answers does something else than was asked of it: the address is that of another role. */
export function isWrongRole({ code, details }: SwitchyardError): boolean {
  return code === 'LINK_LOST' && details.status === 'UNIMPLEMENTED';
}

function wrongRole(said: string, cause: unknown): SwitchyardError {
  const wanted = whoServes[methodPattern.exec(said)?.[1] ?? ''] ?? 'a server that does';
  const text = `what listens there does not do this: ${said}; allowed: the address of ${wanted}`;
  return new SwitchyardError('LINK_LOST', text, { status: 'UNIMPLEMENTED', wanted }, { cause });
}

/** Details as JSON in printable ASCII, as header values must be. */
export function formatDetails(details: ErrorDetails): string {
  return JSON.stringify(details).replace(
    /[^ -~]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** A text of another process, which is sent on, as far as that goes. */
export const cutMessage = (text: string): string => wellFormed(text, messageCharactersMax);

/** Cut to `length`; lone surrogates, which cannot be percent-encoded, become U+FFFD. */
function wellFormed(text: string, length: number): string {
  return Buffer.from(text.length > length ? `${text.slice(0, length)}…` : text).toString();
}

/** Any thrown value as what gRPC sends: status, message, and the stable code and details as trailers. */
export function toServiceError(thrown: unknown): Partial<StatusObject> & Error {
  const error = asSwitchyardError(thrown);
  const metadata = new Metadata();
  metadata.set(codeKey, error.code);
  const details = formatDetails(error.details);
  if (details.length <= detailsCharactersMax) metadata.set(detailsKey, details);
  const message = cutMessage(error.message);
  return Object.assign(new Error(message), { code: error.grpcStatus, details: message, metadata });
}

/** The fields of an error in a message of the protocol. */
export interface FailureFields {
  code: string;
  message: string;
  details: string;
}

/** Any thrown value as the fields of a message. */
export function toFailure(thrown: unknown): FailureFields {
  const { code, message, details } = asSwitchyardError(thrown);
  return { code, message: cutMessage(message), details: formatDetails(details) };
}

/** The error in a message, with `also` in its details. */
export function fromFailure(
  { code, message, details }: FailureFields,
  also: ErrorDetails = {},
): SwitchyardError {
  const known = isErrorCode(code) ? code : 'INTERNAL';
  return new SwitchyardError(known, cutMessage(message), { ...also, ...parseDetails(details) });
}

/** What a gRPC call failed with, as the SwitchyardError that the other side threw. */
export function fromServiceError(thrown: unknown): SwitchyardError {
  if (thrown instanceof SwitchyardError) return thrown;
  const { code, details, metadata } = (thrown ?? {}) as Partial<StatusObject>;
  if (typeof code !== 'number') return asSwitchyardError(thrown);
  const message = details || (thrown instanceof Error ? thrown.message : `gRPC status ${code}`);
  const own = metadata?.get(codeKey)[0];
  if (isErrorCode(own)) {
    return new SwitchyardError(own, message, parseDetails(metadata?.get(detailsKey)[0]), { cause: thrown });
  }
  const [, unresolved] = unresolvedPattern.exec(message) ?? [];
  if (unresolved !== undefined) {
    const text = `the name in ${unresolved} does not resolve on this machine`;
    return new SwitchyardError('LINK_LOST', text, { unresolved }, { cause: thrown });
  }
  const [, why] = unconnectedPattern.exec(message) ?? [];
  if (why !== undefined) {
    if (why.startsWith(tlsFailure))
      return new SwitchyardError('UNAUTHENTICATED', why, { peer: 'server' }, { cause: thrown });
    const text = meanings[why] ?? why;
    return new SwitchyardError('LINK_LOST', text, { status: status[code] ?? code }, { cause: thrown });
  }
  if (code === status.UNIMPLEMENTED) return wrongRole(message, thrown);
  // The wording of grpc-js is the only sign that the message, and not the server, was at fault.
  const tooLarge =
    code === status.RESOURCE_EXHAUSTED && /message larger than max|size larger than/.test(message);
  if (tooLarge) {
    const text = `${message}, by messageBytesMax of the receiver`;
    return new SwitchyardError('TOO_LARGE', text, { setting: 'messageBytesMax' }, { cause: thrown });
  }
  const mapped = codeOfStatus[code] ?? 'INTERNAL';
  return new SwitchyardError(mapped, message, { status: status[code] ?? code }, { cause: thrown });
}

/** The details in a text of `formatDetails`; none in any other. */
export function parseDetails(text: unknown): ErrorDetails {
  if (typeof text !== 'string' || text.length > detailsCharactersMax) return {};
  try {
    const parsed: unknown = JSON.parse(text);
    if (parsed === null || typeof parsed !== 'object' || Array.isArray(parsed)) return {};
    return Object.fromEntries(
      Object.entries(parsed).filter(([, value]) => value === null || typeof value !== 'object'),
    );
  } catch {
    return {};
  }
}

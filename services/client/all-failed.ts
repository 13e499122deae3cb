import { SwitchyardError } from '../common/errors.js';

/** Why a server did not do what was asked of it. */
export interface Failure {
  /** host:port */
  address: string;
  error: SwitchyardError;
}

/** Failures told; a cluster may have many routers. */
const toldMax = 8;

/**
 * Why none of several servers, at least one, did what each was asked for: an error that tells each by its address. It has the code that
 * they share, or else NOT_READY.
 */
export function allFailed(failures: readonly Failure[]): SwitchyardError {
  const [first, ...others] = failures.map(({ error }) => error);
  if (others.length === 0) return first!;
  const isShared = others.every(({ code }) => code === first!.code);
  const code = isShared ? first!.code : 'NOT_READY';
  return new SwitchyardError(code, tellEach(failures), first!.details, { cause: first });
}

/** The failures in words, each with its address. */
export function tellEach(failures: readonly Failure[]): string {
  const texts = failures.slice(0, toldMax).map(({ address, error: { details, message } }) => {
    const isNamed = details.address === address || details.router === address;
    return isNamed ? message : `${address}: ${message}`;
  });
  const more = failures.length - texts.length;
  return [...texts, ...(more > 0 ? [`and ${more} more`] : [])].join('; ');
}

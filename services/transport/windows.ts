import { SwitchyardError } from '../common/errors.js';
import { creditBytesMin } from './limits.js';

export interface LinkWindowsOptions {
  /** This worker's name. */
  worker: string;
  /** Limit of the worker's slabs. */
  slabBytes: number;
  /** The most that one link gets. */
  linkWindowBytes: number;
}

/** Part of the slabs that no link gets: messages without rows, and answers whose credit is back before their memory is. */
const reserve = 1 / 16;

/** What a worker lets its routers have outstanding, dealt to their links: all of it together fits into the worker's slabs. */
export class LinkWindows {
  private freeBytes: number;

  constructor(private readonly options: LinkWindowsOptions) {
    this.freeBytes = Math.floor(options.slabBytes * (1 - reserve));
  }

  /**
   * A window for one more link, to be given back when all its token batches have ended: at most half of what is free, so
   * that the next router finds one too, or what the link had that it replaces. Throws RESOURCE_EXHAUSTED if that is too
   * little to be of use.
   */
  take(router: string, replaced = 0): number {
    const { worker, slabBytes, linkWindowBytes } = this.options;
    const share = Math.max(replaced, Math.floor(this.freeBytes / 2));
    const bytes = Math.min(linkWindowBytes, this.freeBytes, share);
    if (bytes < creditBytesMin) {
      const text = `router ${router} could have ${bytes} bytes outstanding at worker ${worker}; needed: ${creditBytesMin} at least. \
Its slabBytes (${slabBytes}) is dealt to the links of other routers: more of it, or a lower linkWindowBytes (${linkWindowBytes}), leaves more`;
      throw new SwitchyardError('RESOURCE_EXHAUSTED', text, {
        field: 'credit_bytes',
        value: bytes,
        allowed: creditBytesMin,
        setting: 'slabBytes',
        node: `worker ${worker}`,
      });
    }
    this.freeBytes -= bytes;
    return bytes;
  }

  giveBack(bytes: number): void {
    this.freeBytes += bytes;
  }
}

import { asSwitchyardError } from '../common/errors.js';
import { abortable } from '../common/lifecycle.js';
import { allFailed, type Failure } from './all-failed.js';
import type { BatchEnd } from './batch-end.js';
import type { RouterSession, SessionInput, SessionOutput } from './router-session.js';

/** The stream to a router that is none of these (host:port). Rejects if there is none, or none can be opened. */
export type ChooseRouter = (tried: ReadonlySet<string>) => Promise<RouterSession>;

/** Sends a batch to a router, and to another one as long as one ends without having answered it. Rejects as the first did, and as soon as `end` comes. */
export async function sendToOne(
  choose: ChooseRouter,
  input: SessionInput,
  end: BatchEnd,
): Promise<SessionOutput> {
  const tried = new Set<string>();
  const refusals: Failure[] = [];
  for (let sent = input; ; ) {
    const session = await abortable(choose(tried), end).catch((error) => {
      throw refusals.length > 0 && !end.aborted ? allFailed(refusals) : error;
    });
    try {
      return await session.send(sent, end);
    } catch (thrown) {
      const error = asSwitchyardError(thrown);
      if (error.code !== 'DRAINING') throw thrown;
      refusals.push({ address: session.router, error });
      tried.add(session.router);
      end.waits();
      // Another may have a part of the same batch under way, by the same name.
      sent = { ...input, header: { ...input.header, batchId: '' } };
    }
  }
}

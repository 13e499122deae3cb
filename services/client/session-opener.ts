import { asSwitchyardError } from '../common/errors.js';
import type { RouterDescription } from '../common/generated/switchyard/v1/RouterDescription.js';
import type { Credential } from '../common/grpc-channel.js';
import { abortable, abortError, type EndSignal, onAbort } from '../common/lifecycle.js';
import type { TransportChoice } from '../transport/link.js';
import type { Connections } from './connections.js';
import { RouterSession, type RouterSessionOptions } from './router-session.js';
import { reachRouters } from './routers.js';
import type { SessionOpener } from './session-routers.js';
import type { UnreachableByUcx } from './ucx.js';

export interface SessionSurroundings {
  connections: Connections;
  credential: Credential;
  unreachable: UnreachableByUcx;
}

/** What opens the streams of sessions whose rows travel as `transport` says. */
export function sessionOpener(
  { connections, credential, unreachable }: SessionSurroundings,
  transport: TransportChoice,
): SessionOpener {
  const opened = async (
    router: RouterDescription,
    over: EndSignal,
    options: Pick<RouterSessionOptions, 'transport' | 'others' | 'inBackground'>,
  ) => {
    await abortable(reachRouters([router], connections, 1, 0), over);
    const { address, name } = router;
    const session = new RouterSession({ router: address, name, credential, unreachable, ...options });
    const forget = onAbort(over, () => session.lose(abortError(over)));
    await abortable(session.opened, over).finally(forget);
    return session;
  };
  return {
    open: async (router, others, over) => {
      const options = { others, inBackground: false };
      try {
        return await opened(router, over, { ...options, transport });
      } catch (error) {
        const { transport: lostBy, lasts } = asSwitchyardError(error).details;
        if (transport !== 'auto' || lostBy !== 'ucx') throw error;
        // UCX does not reach the router, and is left alone there for a while.
        return opened(router, over, { ...options, transport: lasts ? 'grpc' : 'auto' });
      }
    },
    openByUcx: (router, over) =>
      opened(router, over, { transport: 'ucx', others: false, inBackground: true }),
  };
}

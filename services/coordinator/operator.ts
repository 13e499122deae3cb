import type { sendUnaryData } from '@grpc/grpc-js';
import { invalidArgument } from '../common/errors.js';
import type { OperatorHandlers } from '../common/generated/switchyard/v1/Operator.js';
import { toServiceError } from '../common/status.js';
import type { Clock } from '../runtime/clock.js';
import type { Cluster } from './cluster.js';

/** What operators ask of the coordinator, as a service. `cluster` throws if it does not lead. */
export function operatorService(cluster: () => Cluster, clock: Clock): OperatorHandlers {
  return {
    MarkWorker: ({ request: { worker, mark } }, answer) =>
      respond(answer, async () => {
        if (mark !== 'NO_MARK' && mark !== 'CORDONED' && mark !== 'DRAINED')
          throw invalidArgument('mark', mark, 'NO_MARK, CORDONED, DRAINED');
        cluster().mark(worker, mark === 'NO_MARK' ? null : mark, clock.now());
        return {};
      }),
    Rebalance: ({ request: { target } }, answer) =>
      respond(answer, async () =>
        target === null ? cluster().rebalance(clock.now()) : cluster().goTo(target, clock.now()),
      ),
  };
}

async function respond<Answer>(answer: sendUnaryData<Answer>, work: () => Promise<Answer>): Promise<void> {
  try {
    answer(null, await work());
  } catch (error) {
    answer(toServiceError(error));
  }
}

import { describeCluster } from '../common/describe-cluster.js';
import { SwitchyardError } from '../common/errors.js';
import type { ClusterViewInput } from '../common/generated/switchyard/v1/ClusterView.js';
import type { InferenceHandlers } from '../common/generated/switchyard/v1/Inference.js';
import type { ModelDescriptionInput } from '../common/generated/switchyard/v1/ModelDescription.js';
import { toServiceError } from '../common/status.js';
import type { Watchers } from '../common/watchers.js';
import type { Clock } from '../runtime/clock.js';
import type { Cluster } from './cluster.js';

export interface DescribeOptions {
  description: ModelDescriptionInput;
  /** Throws if this coordinator does not lead; `watchers` is then null. */
  cluster: () => Cluster;
  watchers: () => Watchers | null;
  clock: Clock;
}

/** The client API of a coordinator that embeds no router: describes the cluster, and names its routers to who asks for more. */
export function describeOnly({ description, cluster, watchers, clock }: DescribeOptions): InferenceHandlers {
  const startedMs = clock.now();
  const describe = (placement: boolean) =>
    describeCluster({
      view: cluster().view,
      placement: placement ? cluster().placement() : null,
      figures: cluster().figures(),
      model: description,
      routed: [],
      router: '',
      uptimeMs: clock.now() - startedMs,
    });
  return {
    DescribeModel: (_call, answer) => answer(null, description),
    DescribeCluster: ({ request }, answer) => {
      try {
        answer(null, describe(request.placement));
      } catch (error) {
        answer(toServiceError(error));
      }
    },
    WatchCluster: (call) => {
      const open = watchers();
      if (open === null) call.emit('error', whyRefused(cluster));
      else open.accept(call);
    },
    Forward: (call) => call.emit('error', whyRefused(cluster)),
    Session: (call) => call.emit('error', whyRefused(cluster)),
  };
}

/** That it does not lead, or has no router. */
function whyRefused(cluster: () => Cluster): Error {
  try {
    return toServiceError(noRouter(cluster().view));
  } catch (error) {
    return toServiceError(error);
  }
}

function noRouter({ nodes }: ClusterViewInput): SwitchyardError {
  const routers = (nodes ?? []).filter(
    ({ role, state }) => role === 'ROUTER' && (state === 'READY' || state === 'JOINING'),
  );
  const addresses = routers.map((node) => node.address).join(', ');
  const advice = addresses === '' ? 'no router has joined yet' : `send batches to ${addresses}`;
  const text = `this coordinator routes no batches; ${advice}`;
  return new SwitchyardError('NOT_READY', text, { routers: addresses });
}

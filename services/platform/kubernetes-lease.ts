import type { CoordinationV1Api, V1Lease } from '@kubernetes/client-node';
import type { Clock } from '../runtime/clock.js';
import type { LeaderLease, LeaseRecord, StoredLease } from '../runtime/leader-lease.js';
import { type KubernetesApi, statusOf } from './kubernetes.js';

/**
 * The lease as a Lease of coordination.k8s.io in the namespace of this process, replaced by its resource version. Its times are for who reads them: nobody judges by them.
 * The term is its count of transitions.
 */
export class KubernetesLease implements LeaderLease {
  private readonly leases: CoordinationV1Api;

  constructor(
    private readonly api: KubernetesApi,
    private readonly name: string,
    private readonly clock: Clock,
  ) {
    this.leases = api.client(api.library.CoordinationV1Api);
  }

  async read(withinMs: number): Promise<StoredLease | null> {
    const { name, api } = this;
    try {
      return stored(
        await this.leases.readNamespacedLease({ name, namespace: api.namespace }, api.within(withinMs)),
      );
    } catch (error) {
      if (statusOf(error) === 404) return null;
      throw api.explain(error);
    }
  }

  async replace(version: string | null, record: LeaseRecord, withinMs: number): Promise<StoredLease | null> {
    const { name, api } = this;
    const { namespace } = api;
    const body = this.lease(version, record);
    try {
      const written =
        version === null
          ? this.leases.createNamespacedLease({ namespace, body }, api.within(withinMs))
          : this.leases.replaceNamespacedLease({ name, namespace, body }, api.within(withinMs));
      return stored(await written);
    } catch (error) {
      // Changed, deleted, or made meanwhile.
      if (statusOf(error) === 409 || statusOf(error) === 404) return null;
      throw api.explain(error);
    }
  }

  close(): void {}

  private lease(version: string | null, { holder, address, term, leaseMs }: LeaseRecord): V1Lease {
    const { V1MicroTime } = this.api.library;
    const leaseDurationSeconds = Math.ceil(leaseMs / 1000);
    const renewTime = new V1MicroTime(this.clock.wall());
    const spec = { leaseTransitions: term, leaseDurationSeconds, renewTime };
    return {
      metadata: { name: this.name, ...(version !== null && { resourceVersion: version }) },
      spec: holder === '' ? spec : { ...spec, holderIdentity: `${address}_${holder}` },
    };
  }
}

function stored({ metadata, spec }: V1Lease): StoredLease {
  const identity = spec?.holderIdentity ?? '';
  const [, address = '', holder = identity] = /^(.*)_([^_]*)$/.exec(identity) ?? [];
  return {
    holder,
    address,
    term: spec?.leaseTransitions ?? 0,
    leaseMs: 1000 * (spec?.leaseDurationSeconds ?? 0),
    version: metadata!.resourceVersion!,
  };
}

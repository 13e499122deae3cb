import { EtcdLease } from '../platform/etcd-lease.js';
import { KubernetesApi } from '../platform/kubernetes.js';
import { KubernetesLease } from '../platform/kubernetes-lease.js';
import type { Clock } from '../runtime/clock.js';
import type { LeaderLease } from '../runtime/leader-lease.js';
import type { CoordinatorConfig } from './config.js';

/** The lease that a configuration names; null: none. Throws CONFIG_INVALID if it cannot be had here. */
export async function openLease(config: CoordinatorConfig, clock: Clock): Promise<LeaderLease | null> {
  const { lease, leaseName, etcd } = config;
  switch (lease) {
    case 'none':
      return null;
    case 'etcd':
      return new EtcdLease(etcd, leaseName, clock);
    case 'kubernetes':
      return new KubernetesLease(await KubernetesApi.open('lease'), leaseName, clock);
  }
}

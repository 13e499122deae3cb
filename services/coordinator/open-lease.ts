import { SwitchyardError } from '../common/errors.js';
import type { Logger } from '../common/log.js';
import { Tls } from '../common/tls.js';
import { EtcdLease } from '../platform/etcd-lease.js';
import { KubernetesApi } from '../platform/kubernetes.js';
import { KubernetesLease } from '../platform/kubernetes-lease.js';
import type { Clock } from '../runtime/clock.js';
import type { LeaderLease } from '../runtime/leader-lease.js';
import type { CoordinatorConfig } from './config.js';

/** The lease that a configuration names; null: none. Throws CONFIG_INVALID if it cannot be had here. */
export async function openLease(
  config: CoordinatorConfig,
  clock: Clock,
  log: Logger,
): Promise<LeaderLease | null> {
  const { lease, leaseName, etcd } = config;
  switch (lease) {
    case 'none':
      return null;
    case 'etcd':
      return new EtcdLease(etcd, leaseName, clock, etcdTls(config, log));
    case 'kubernetes':
      return new KubernetesLease(await KubernetesApi.open('lease'), leaseName, clock);
  }
}

/** Null: connections to etcd are not encrypted. */
function etcdTls({ etcdCa: ca, etcdCert: cert, etcdKey: key }: CoordinatorConfig, log: Logger): Tls | null {
  if (ca === null && cert === null && key === null) return null;
  if (ca !== null && (cert === null) === (key === null)) return new Tls({ ca, cert, key }, log, 'etcd');
  const missing = ca === null ? 'etcdCa' : cert === null ? 'etcdCert' : 'etcdKey';
  const allowed = 'etcdCa, and etcdCert and etcdKey together or neither';
  throw new SwitchyardError('CONFIG_INVALID', `${missing} is missing; allowed: ${allowed}`, {
    key: missing,
    allowed,
  });
}

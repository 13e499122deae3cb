import type { Informer, ObjectCache, V1Node } from '@kubernetes/client-node';
import { sleep } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import type { KubernetesApi } from './kubernetes.js';

/** A watch that failed is begun anew after so long. */
const pauseMs = 5_000;

/** The nodes of the Kubernetes cluster with their labels, kept up to date by a watch. */
export class KubernetesNodes {
  private readonly informer: Informer<V1Node> & ObjectCache<V1Node>;
  private retry: NodeJS.Timeout | null = null;
  private closed = false;
  private failureTold = false;

  private constructor(
    private readonly api: KubernetesApi,
    private readonly log: Logger,
  ) {
    this.informer = api.watchNodes();
    this.informer.on('error', (error) => this.failed(error));
  }

  /** Resolves when the nodes are known, or cannot be for now. */
  static async open(api: KubernetesApi, log: Logger): Promise<KubernetesNodes> {
    const nodes = new KubernetesNodes(api, log);
    await Promise.race([nodes.watch(), sleep(pauseMs)]);
    return nodes;
  }

  /** By name. */
  get labels(): ReadonlyMap<string, Readonly<Record<string, string>>> {
    return new Map(this.informer.list().map(({ metadata }) => [metadata!.name!, metadata!.labels ?? {}]));
  }

  close(): void {
    this.closed = true;
    if (this.retry !== null) clearTimeout(this.retry);
    void this.informer.stop();
  }

  private async watch(): Promise<void> {
    try {
      await this.informer.start();
      this.failureTold = false;
    } catch (error) {
      this.failed(error);
    }
  }

  private failed(error: unknown): void {
    if (this.closed) return;
    const { code, message } = this.api.explain(error);
    if (!this.failureTold) this.log.warn({ event: 'nodes-unreachable', code, reason: message });
    this.failureTold = true;
    if (this.retry !== null) clearTimeout(this.retry);
    this.retry = setTimeout(() => void this.watch(), pauseMs).unref();
  }
}

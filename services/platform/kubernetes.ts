import type {
  ConfigurationOptions,
  Informer,
  KubeConfig,
  ObjectCache,
  ObservableMiddleware,
  V1Node,
} from '@kubernetes/client-node';
import { SwitchyardError } from '../common/errors.js';

type Library = typeof import('@kubernetes/client-node');

/** The API of the Kubernetes cluster in which this process runs, or that a kubeconfig names. */
export class KubernetesApi {
  /** Of this process, or of the kubeconfig's context. */
  readonly namespace: string;

  private constructor(
    /** It is large, and loaded only where it is needed. */
    readonly library: Library,
    private readonly config: KubeConfig,
  ) {
    const context = config.getContextObject(config.getCurrentContext());
    this.namespace = context?.namespace ?? 'default';
  }

  /** Throws CONFIG_INVALID, which names `key`, the setting that wants it, if there is no such API here. */
  static async open(key: string): Promise<KubernetesApi> {
    const library = await import('@kubernetes/client-node').catch((error: Error) => {
      const text = `${key} is "kubernetes"; allowed: with the package @kubernetes/client-node alone (${error.message})`;
      throw new SwitchyardError('CONFIG_INVALID', text, { key });
    });
    const config = new library.KubeConfig();
    try {
      config.loadFromDefault({ onInvalidEntry: 'throw' });
    } catch (error) {
      const text = `${key} is "kubernetes"; allowed: in a pod, or with a kubeconfig (${(error as Error).message})`;
      throw new SwitchyardError('CONFIG_INVALID', text, { key });
    }
    return new KubernetesApi(library, config);
  }

  client<Api extends Parameters<KubeConfig['makeApiClient']>[0]>(type: Api): InstanceType<Api> {
    return this.config.makeApiClient(type) as InstanceType<Api>;
  }

  /** A list of the cluster's nodes that follows them, once it is started. */
  watchNodes(): Informer<V1Node> & ObjectCache<V1Node> {
    const core = this.client(this.library.CoreV1Api);
    return this.library.makeInformer(this.config, '/api/v1/nodes', () => core.listNode());
  }

  /** Options of a request, which then rejects after `withinMs` at the latest. */
  within(withinMs: number): ConfigurationOptions {
    const { Observable } = this.library;
    const bounded: ObservableMiddleware = {
      pre: (context) => {
        context.setSignal(AbortSignal.timeout(withinMs));
        return new Observable(Promise.resolve(context));
      },
      post: (context) => new Observable(Promise.resolve(context)),
    };
    return { middleware: [bounded], middlewareMergeStrategy: 'append' };
  }

  /** What a request failed with. */
  explain(error: unknown): SwitchyardError {
    const status = statusOf(error);
    const server = this.config.getCurrentCluster()?.server ?? '';
    const text = `the Kubernetes API at ${server}: ${messageOf(error)}`;
    const code = status === 403 ? 'PERMISSION_DENIED' : status === 401 ? 'UNAUTHENTICATED' : 'LINK_LOST';
    return new SwitchyardError(code, text, { server, status: status ?? null }, { cause: error });
  }
}

/** The HTTP status of an answer; undefined: there was none. */
export function statusOf(error: unknown): number | undefined {
  const { code } = error as { code?: unknown };
  return typeof code === 'number' ? code : undefined;
}

function messageOf(error: unknown): string {
  const { body } = error as { body?: unknown };
  const parsed = typeof body === 'string' ? (JSON.parse(body) as unknown) : body;
  const message = (parsed as { message?: unknown } | undefined)?.message;
  return typeof message === 'string' ? message : (error as Error).message;
}

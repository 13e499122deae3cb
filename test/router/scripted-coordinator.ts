import { Access } from '../../services/common/access.js';
import { copiesMessage } from '../../services/common/expert-copies.js';
import type { CoordinatorMessageInput } from '../../services/common/generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeHello } from '../../services/common/generated/switchyard/v1/NodeHello.js';
import type { NodeMessage } from '../../services/common/generated/switchyard/v1/NodeMessage.js';
import type { RouterReport } from '../../services/common/generated/switchyard/v1/RouterReport.js';
import { serveDuplex } from '../../services/common/grpc-duplex.js';
import { type GrpcServer, startGrpcServer } from '../../services/common/grpc-server.js';
import { groupByLayer } from '../../services/common/layer-experts.js';
import { createLogger } from '../../services/common/log.js';
import { encodeControl, services } from '../../services/common/protocol.js';
import { describeModel } from '../../services/coordinator/describe.js';
import type { ModelSpec } from '../../services/model/spec.js';
import type { Duplex } from '../../services/runtime/duplex.js';
import { linkKey } from '../../services/transport/link-key.js';

interface Node {
  hello: NodeHello;
  stream: ControlStream;
  alive: boolean;
  leaving: boolean;
  /** Of a worker: layer and expert. */
  ready: ReadonlySet<string>;
  /** Of a router: its last report. */
  report: RouterReport | null;
}

type ControlStream = Duplex<NodeMessage, ReturnType<typeof encodeControl>>;
/** Names of the workers that shall have an expert. */
export type Wanted = (layer: number, expert: number) => readonly string[];

/** A coordinator that places copies where a test says, and tells routers of those whose workers live, stay and have loaded them. */
export class ScriptedCoordinator {
  /** Publishes copies whose workers do not have them, too. */
  believes = false;
  private readonly nodes = new Map<string, Node>();
  /** Indices stay. */
  private readonly workers: string[] = [];
  private epoch = 0;
  private published = '';
  private server!: GrpcServer;
  private readonly timer = setInterval(() => this.tell({ heartbeat: {} }), 500);

  private constructor(
    private readonly model: ModelSpec,
    /** Null: it places nothing. */
    private wanted: Wanted | null,
    readonly term: number,
  ) {}

  static async start(
    model: ModelSpec,
    wanted: Wanted | null,
    { term = 1, port = 0 } = {},
  ): Promise<ScriptedCoordinator> {
    const scripted = new ScriptedCoordinator(model, wanted, term);
    const implementation = { Join: serveDuplex((stream: ControlStream) => scripted.accept(stream)) };
    scripted.server = await startGrpcServer({
      host: '127.0.0.1',
      port,
      access: new Access({ client: null, node: null, operator: null }),
      insecure: false,
      messageLimit: { bytesMax: 2 ** 20, node: 'coordinator' },
      batchesMax: 1,
      streamWindowBytes: 65_536,
      services: [{ definition: services.Coordinator, implementation }],
      log: createLogger('coordinator', 'scripted', 'silent'),
    });
    return scripted;
  }

  get address(): string {
    return this.server.address;
  }

  get port(): number {
    return this.server.port;
  }

  /** The placement that routers were told last. */
  get version(): { term: number; epoch: number } {
    return { term: this.term, epoch: this.epoch };
  }

  report(router: string): RouterReport | null {
    return this.nodes.get(`ROUTER ${router}`)?.report ?? null;
  }

  place(wanted: Wanted): void {
    this.wanted = wanted;
    for (const node of this.nodes.values()) if (node.hello.role === 'WORKER') this.assign(node);
    this.publish();
  }

  async stop(): Promise<void> {
    clearInterval(this.timer);
    await this.server.close(100);
  }

  private accept(stream: ControlStream): void {
    let node: Node | null = null;
    const ended = () => {
      if (node !== null) node.alive = false;
      this.publish();
    };
    stream.listen({
      message: (message) => {
        if (message.hello) node = this.welcome(message.hello, stream);
        else if (node !== null) this.receive(node, message);
      },
      end: () => {
        stream.end();
        ended();
      },
      fail: ended,
    });
  }

  private welcome(hello: NodeHello, stream: ControlStream): Node {
    const node: Node = { hello, stream, alive: true, leaving: false, ready: new Set(), report: null };
    this.nodes.set(`${hello.role} ${hello.name}`, node);
    this.say(node, { welcome: { model: describeModel(this.model), feedback: false } });
    if (hello.role === 'WORKER') this.assign(node);
    this.published = '';
    this.publish();
    return node;
  }

  private receive(node: Node, { worker, router, leaving }: NodeMessage): void {
    if (router) node.report = router;
    if (leaving) node.leaving = true;
    if (worker?.readyChanged)
      node.ready = new Set(
        worker.ready.flatMap(({ layer, experts }) => experts.map((one) => `${layer} ${one}`)),
      );
    if (leaving || worker?.readyChanged) this.publish();
  }

  private assign(node: Node): void {
    const { wanted } = this;
    if (wanted === null) return;
    const own = this.model.layers.flatMap(({ layer, experts }) =>
      Array.from({ length: experts }, (_, expert) => ({ layer, expert })).filter(
        ({ expert }) => !this.believes && wanted(layer, expert).includes(node.hello.name),
      ),
    );
    this.say(node, { assignment: { experts: groupByLayer(own) } });
  }

  private publish(): void {
    const { wanted } = this;
    if (wanted === null) {
      this.tellRouters({ view: { term: this.term, epoch: 0, nodes: this.describeNodes() } });
      return;
    }
    const index = (name: string) => {
      if (!this.workers.includes(name)) this.workers.push(name);
      return this.workers.indexOf(name);
    };
    const serves = (name: string, layer: number, expert: number) => {
      const node = this.nodes.get(`WORKER ${name}`);
      return node?.alive && !node.leaving && (this.believes || node.ready.has(`${layer} ${expert}`));
    };
    const layers = this.model.layers.map(({ layer, experts }) =>
      copiesMessage(
        layer,
        Array.from({ length: experts }, (_, expert) =>
          wanted(layer, expert)
            .filter((name) => serves(name, layer, expert))
            .map(index)
            .sort((a, b) => a - b),
        ),
      ),
    );
    const nodes = this.describeNodes();
    const published = JSON.stringify({ layers, nodes });
    if (published === this.published) return;
    this.published = published;
    this.epoch += 1;
    const ready = layers.every(({ copies }) => copies.every((count) => count > 0));
    const placement = { workers: this.workers, layers };
    const view = { ...this.version, ready, reason: ready ? '' : 'experts are missing', nodes, placement };
    this.tellRouters({ view });
  }

  private describeNodes() {
    return [...this.nodes.values()].map(({ hello, alive, leaving }) => ({
      role: hello.role,
      name: hello.name,
      address: hello.address,
      host: hello.host,
      state: alive ? (leaving ? ('DRAINING' as const) : ('READY' as const)) : ('DEAD' as const),
    }));
  }

  /** With the keys of all links, which come first. */
  private tellRouters(message: CoordinatorMessageInput): void {
    for (const router of this.nodes.values()) {
      if (router.hello.role !== 'ROUTER' || !router.alive) continue;
      const workers = [...this.nodes.values()].filter(({ hello, alive }) => alive && hello.role === 'WORKER');
      const keys = workers.map(({ hello }) => ({
        worker: hello.name,
        key: linkKey(hello.linkSecret, router.hello.name),
      }));
      this.say(router, { keys: { keys } });
      this.say(router, message);
    }
  }

  private tell(message: CoordinatorMessageInput): void {
    for (const node of this.nodes.values()) this.say(node, message);
  }

  private say(node: Node, message: CoordinatorMessageInput): void {
    if (node.alive) node.stream.write(encodeControl(message));
  }
}

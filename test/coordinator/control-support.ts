import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import { afterEach } from '@jest/globals';
import { Access } from '../../services/common/access.js';
import { SwitchyardError } from '../../services/common/errors.js';
import type { CoordinatorMessage } from '../../services/common/generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeMessageInput } from '../../services/common/generated/switchyard/v1/NodeMessage.js';
import { connect } from '../../services/common/grpc-channel.js';
import { serveDuplex } from '../../services/common/grpc-duplex.js';
import { type GrpcServer, startGrpcServer } from '../../services/common/grpc-server.js';
import { type ExpertId, expertsIn, groupByLayer } from '../../services/common/layer-experts.js';
import { createLogger } from '../../services/common/log.js';
import { clients, services } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { ControlService } from '../../services/coordinator/control-service.js';
import { describeModel } from '../../services/coordinator/describe.js';
import type { ControlStream } from '../../services/coordinator/node-stream.js';
import type { PaceOptions } from '../../services/coordinator/pace.js';
import type { PlacementOptions } from '../../services/coordinator/plans.js';
import type { Topology } from '../../services/coordinator/topology.js';
import type { ModelSpec } from '../../services/model/spec.js';
import { systemClock } from '../../services/runtime/system.js';
import { linkSecretBytes } from '../../services/transport/link-key.js';
import { hello, placementOptions, tinyModel } from './support.js';

export const log = createLogger('test', 'test', 'silent');
export const leaseMs = 600;
export const stopping = new SwitchyardError('DRAINING', 'the coordinator is stopping');
const cleanups: (() => unknown)[] = [];

/** Runs when the test is over, the last one first. */
export function atEnd(cleanup: () => unknown): void {
  cleanups.push(cleanup);
}

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** A coordinator's control plane on a server of its own. */
export interface Started {
  control: ControlService;
  server: GrpcServer;
}

export async function start(
  options: {
    workers?: number;
    placement?: Partial<PlacementOptions>;
    topology?: Topology;
    port?: number;
    heartbeatMs?: number;
    model?: ModelSpec;
    leaseMs?: number;
    leftKeptMs?: number;
    deadKeptMs?: number;
    pace?: PaceOptions;
    onUnknown?: () => void;
    messageBytesMax?: number;
  } = {},
): Promise<Started> {
  const model = options.model ?? tinyModel;
  const control = new ControlService({
    term: 1,
    leads: () => true,
    model,
    description: describeModel(model),
    placement: { ...placementOptions, ...options.placement, workers: options.workers ?? 1 },
    topology: () => options.topology ?? null,
    leaseMs: options.leaseMs ?? leaseMs,
    leftKeptMs: options.leftKeptMs ?? 60_000,
    deadKeptMs: options.deadKeptMs ?? 60_000,
    pace: options.pace ?? { atOnce: 5_000, perSecond: 500 },
    onUnknown: options.onUnknown ?? (() => {}),
    heartbeatMs: options.heartbeatMs ?? 100,
    feedbackOn: true,
    feedback: { rate: 0.01, limit: 1, windowRowsPerExpert: 4 },
    log,
    clock: systemClock,
    onView: () => {},
    onReady: () => {},
  });
  cleanups.push(() => control.close(stopping));
  const server = await startGrpcServer({
    host: '127.0.0.1',
    port: options.port ?? 0,
    access: new Access({}),
    insecure: false,
    messageLimit: { bytesMax: options.messageBytesMax ?? 2 ** 20, node: 'router r' },
    services: [
      {
        definition: services.Coordinator,
        implementation: {
          Join: serveDuplex((stream: ControlStream, caller) => control.accept(stream, caller)),
        },
      },
    ],
    log,
  });
  cleanups.push(() => server.close(100));
  return { control, server };
}

/** A node that speaks the protocol by hand, so that it can also misbehave. */
export class RawNode {
  readonly received: CoordinatorMessage[] = [];
  error: Error | null = null;
  readonly call: ClientDuplexStream<NodeMessageInput, CoordinatorMessage>;
  private readonly client;
  private timer: NodeJS.Timeout | null = null;
  /** Version of the assignment that came last. */
  private assignment = 0;

  constructor({ server }: Started) {
    this.client = connect(clients.Coordinator, server.address, { token: null, messageBytesMax: 2 ** 24 });
    this.call = this.client.Join();
    this.call.on('data', (message: CoordinatorMessage) => {
      this.received.push(message);
      if (message.assignment) this.assignment = message.assignment.version;
    });
    this.call.on('error', (error) => {
      this.error = fromServiceError(error);
    });
    cleanups.push(() => this.close());
  }

  say(message: NodeMessageInput): this {
    this.call.write(message);
    return this;
  }

  /** Holds what it is told to, from then on, and reports it. */
  obey(): this {
    return this.report(() => {
      const told = this.of('assignment').at(-1)?.assignment;
      return told ? [...expertsIn(told.experts)] : [];
    });
  }

  /** Reports often, as a worker that holds these experts does. */
  report(held: ExpertId[] | (() => ExpertId[])): this {
    const ready = typeof held === 'function' ? held : () => held;
    this.silence();
    let followed = -1;
    this.timer = setInterval(() => {
      const { assignment } = this;
      const changed = assignment !== followed;
      this.say({
        worker: { ready: changed ? groupByLayer(ready()) : [], readyChanged: changed, assignment },
      });
      followed = assignment;
    }, 50);
    return this;
  }

  silence(): void {
    if (this.timer !== null) clearInterval(this.timer);
    this.timer = null;
  }

  of(kind: NonNullable<CoordinatorMessage['kind']>): CoordinatorMessage[] {
    return this.received.filter((message) => message.kind === kind);
  }

  close(): void {
    this.silence();
    this.call.cancel();
    this.client.close();
  }
}

export const allExperts = tinyModel.layers.flatMap(({ layer, experts }) =>
  Array.from({ length: experts }, (_, expert) => ({ layer, expert })),
);

export const worker = (started: Started, name: string, fields = {}) =>
  new RawNode(started).say({ hello: hello(name, fields) });

export const stateOf = ({ control }: Started, name: string) =>
  control.view.nodes!.find((node) => node.name === name);

/** A node in a process of its own. */
export function spawnNode(address: string): ChildProcess {
  const program = `
    import { ControlSession } from './dist/services/common/control-session.js';
    import { createLogger } from './dist/services/common/log.js';
    import { coordinatorDialer } from './dist/services/common/grpc-duplex.js';
    import { nativeRuntime } from './dist/services/runtime/native.js';
    let assignment = 0;
    new ControlSession({
      coordinators: ['${address}'], token: null,
      dial: coordinatorDialer(null), runtime: nativeRuntime,
      hello: { ...${JSON.stringify(hello('child'))}, linkSecret: Buffer.alloc(${linkSecretBytes}) },
      report: () => ({ worker: { readyChanged: true, assignment, ready: ${JSON.stringify(groupByLayer(allExperts))} } }),
      reportMs: 50, leaseMs: ${leaseMs}, onMessage: (message) => {
        if (message.welcome) assignment = 0;
        if (message.assignment) assignment = message.assignment.version;
      }, log: createLogger('worker', 'child', 'silent'),
    });`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], { stdio: 'inherit' });
  cleanups.push(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  return child;
}

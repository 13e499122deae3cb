import { Access } from '../common/access.js';
import { controlLimits } from '../common/control-limits.js';
import type { SwitchyardError } from '../common/errors.js';
import { ExpertMetrics } from '../common/expert-metrics.js';
import { Registry } from '../common/metrics.js';
import { exchangeCodec, joinCodec } from '../common/protocol.js';
import { coordinatorSchema, placementOf } from '../coordinator/config.js';
import type { ControlService } from '../coordinator/control-service.js';
import { CoordinatorCore } from '../coordinator/core.js';
import { describeModel } from '../coordinator/describe.js';
import type { ModelSpec } from '../model/spec.js';
import { plan } from '../placement/plan.js';
import { routerSchema } from '../router/config.js';
import { RouterCore } from '../router/core.js';
import { workerSchema } from '../worker/config.js';
import { WorkerCore } from '../worker/core.js';
import { executorMetrics } from '../worker/metrics.js';
import type { EventLog } from './event-log.js';
import type { LeaseStore } from './lease-store.js';
import { simulatedLogger } from './logger.js';
import { openedModel, routerWeights, SimulatedBackend } from './model.js';
import type { Network } from './network.js';
import type { SimulatedProcess } from './process.js';
import type { RouterScenario, Scenario, WorkerScenario } from './scenario.js';

export const join = { name: 'Join', ...joinCodec };
export const exchange = { name: 'Exchange', ...exchangeCodec };

/** Where processes run, and what is the same for all of them. */
export interface Surroundings {
  scenario: Scenario;
  spec: ModelSpec;
  network: Network;
  log: EventLog;
  /** host:port of each. */
  coordinators: readonly string[];
  /** Null: there is one coordinator. */
  leases: LeaseStore | null;
}

const onUnknown = () => {};

/** A process of the cluster with the product's own code in it. */
export interface SimulatedNode {
  readonly process: SimulatedProcess;
  /** It was asked to end. */
  draining: boolean;
  /** As SIGTERM. Resolves when the process may end. */
  stop(): Promise<void>;
}

export class CoordinatorNode implements SimulatedNode {
  readonly core: CoordinatorCore;
  draining = false;

  constructor(
    readonly process: SimulatedProcess,
    address: string,
    { scenario, spec, network, log, leases }: Surroundings,
    private readonly onView: (control: ControlService) => void,
  ) {
    const { leaseMs, leaderLeaseMs, heartbeatMs, feedback, placement } = scenario;
    const config = coordinatorSchema.parse({ leaseMs, heartbeatMs, ...placement });
    this.core = new CoordinatorCore({
      lease: leases?.of(process) ?? null,
      leaderLeaseMs,
      random: process.runtime.random,
      model: spec,
      description: describeModel(spec),
      placement: { ...placementOf(config), plan: async (input) => plan(input) },
      topology: () => null,
      leaseMs,
      leftKeptMs: 60_000,
      deadKeptMs: 900_000,
      heartbeatMs,
      feedbackOn: feedback,
      feedback: { rate: config.feedbackRate, limit: 1, windowRowsPerExpert: 4 },
      log: simulatedLogger(log, process.name),
      clock: process.runtime.clock,
      pace: { atOnce: controlLimits.messagesAtOnce, perSecond: controlLimits.messagesPerSecond },
      onUnknown,
      onView: () => {
        if (this.control !== null) this.onView(this.control);
      },
      onReady: () => {},
      onLeading: () => {},
    });
    network.listen(process, address, join, (stream, caller) => this.core.accept(stream, caller));
    this.core.start(address);
  }

  /** Null: it does not lead. */
  get control(): ControlService | null {
    return this.core.leading;
  }

  async stop(): Promise<void> {
    this.draining = true;
    await this.core.stop();
  }
}

export class RouterNode implements SimulatedNode {
  readonly core: RouterCore;
  draining = false;
  /** It can be a router no more, and ends. */
  over = false;

  constructor(
    readonly process: SimulatedProcess,
    { name, host, budgetBytes }: RouterScenario,
    { scenario, spec, network, log, coordinators }: Surroundings,
    onFailed: (error: SwitchyardError) => void,
  ) {
    const { leaseMs, readyWaitMs } = scenario;
    const { clock } = process.runtime;
    const config = { transport: 'grpc', budgetBytes, leaseMs, readyWaitMs, drainMs: 2_000 };
    this.core = new RouterCore({
      config: routerSchema.parse(config),
      name,
      token: null,
      log: simulatedLogger(log, name),
      registry: new Registry(),
      experts: new ExpertMetrics('router', name),
      trace: null,
      tracer: null,
      onUnknown,
      runtime: process.runtime,
      machine: host,
      dial: { coordinator: network.dialer(process, join), worker: network.dialer(process, exchange) },
      ucx: null,
      loadWeights: () =>
        new Promise((resolve) => {
          clock.after(scenario.rates.openMs, () => resolve(routerWeights(spec, process.rows)));
        }),
      onChange: () => {},
      onReady: () => {},
    });
    const identity = { address: `${host}:2`, metricsUrl: '', pid: process.number };
    void this.core.start(coordinators, identity).then((error) => {
      this.over = error !== null;
      if (error !== null) onFailed(error);
    });
  }

  async stop(): Promise<void> {
    this.draining = true;
    await this.core.drain('asked to');
    await this.core.leave('asked to');
  }
}

export class WorkerNode implements SimulatedNode {
  readonly core: WorkerCore;
  readonly backend: SimulatedBackend;
  readonly memoryBytes: number;
  readonly drainMs: number;
  draining = false;
  /** Whether it was a member when it was asked to end. */
  wasConnected = false;

  constructor(
    readonly process: SimulatedProcess,
    { name, host, device, expertsMax, slabBytes, drainMs }: WorkerScenario,
    { scenario, spec, network, log, coordinators }: Surroundings,
    port: number,
    onFailed: (error: SwitchyardError) => void,
  ) {
    const { leaseMs, rates } = scenario;
    const { clock } = process.runtime;
    const opened = openedModel(spec);
    this.drainMs = drainMs;
    this.memoryBytes = expertsMax * opened.model.expertBytes;
    this.backend = new SimulatedBackend(clock, device, rates.callMs, opened.model.expertBytes);
    this.core = new WorkerCore({
      config: workerSchema.parse({
        name,
        coordinator: [...coordinators],
        transport: 'grpc',
        leaseMs,
        slabBytes,
        drainMs,
      }),
      token: null,
      access: new Access({ client: null, node: null, operator: null }),
      backend: this.backend,
      weights: { bytes: this.memoryBytes, by: 'memory', sharedBytes: 0 },
      memoryLeft: () => null,
      metrics: executorMetrics(new Registry()),
      trace: null,
      tracer: null,
      onUnknown,
      log: simulatedLogger(log, name),
      runtime: process.runtime,
      dial: network.dialer(process, join),
      ucx: null,
      openModel: () =>
        new Promise((resolve) => {
          clock.after(rates.openMs, () => resolve(opened));
        }),
      ownFingerprint: () => '',
      onChange: () => {},
      onFailed,
    });
    const address = `${host}:${port}`;
    if (name !== scenario.unreachable) network.listen(process, address, exchange, this.core.accept);
    this.core.join({ address, host, metricsUrl: '', pid: process.number });
  }

  async stop(): Promise<void> {
    this.draining = true;
    this.wasConnected = this.core.connected;
    await this.core.drain('asked to');
    this.core.close();
  }

  /** The experts that it computes now. */
  holds(): Set<string> {
    const queues = [...(this.core.loaded?.executor.experts() ?? [])];
    return new Set(queues.map(({ layer, index }) => `${layer}/${index}`));
  }
}

import { isDeepStrictEqual } from 'node:util';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import type { AssignmentInput } from '../common/generated/switchyard/v1/Assignment.js';
import type { ClusterViewInput } from '../common/generated/switchyard/v1/ClusterView.js';
import type { LinkKeyInput } from '../common/generated/switchyard/v1/LinkKey.js';
import type { NodeFiguresInput } from '../common/generated/switchyard/v1/NodeFigures.js';
import type { NodeHello } from '../common/generated/switchyard/v1/NodeHello.js';
import type { Placement, PlacementInput } from '../common/generated/switchyard/v1/Placement.js';
import type { RebalanceAnswerInput } from '../common/generated/switchyard/v1/RebalanceAnswer.js';
import type { RouterReport } from '../common/generated/switchyard/v1/RouterReport.js';
import type { WorkerReport } from '../common/generated/switchyard/v1/WorkerReport.js';
import { expertsIn, groupByLayer } from '../common/layer-experts.js';
import { unpackUint32 } from '../common/packed.js';
import { ExpertOrder } from '../model/expert-order.js';
import type { ModelSpec } from '../model/spec.js';
import { linkKey } from '../transport/link-key.js';
import { balancedness, Feedback, type FeedbackOptions } from './balance.js';
import { checkHello, checkRouterReport, checkText, checkWorkerReport } from './check.js';
import { type Member, Membership } from './membership.js';
import { type Mark, type PlacementOptions, PlacementPlans } from './plans.js';
import { lookAtReach } from './reach.js';
import { type Spread, spreadOf } from './spread.js';
import { checkPlace, type Topology } from './topology.js';
import { clusterView, nodeFigures } from './view.js';

export interface ClusterOptions {
  /** Of this coordinator's lead, from its start on. */
  term: number;
  model: ModelSpec;
  /** As it is now; null: none is known. */
  topology: () => Topology | null;
  leaseMs: number;
  leftKeptMs: number;
  deadKeptMs: number;
  feedback: FeedbackOptions;
  placement: PlacementOptions;
}

/** Rows a second of the experts of a layer, and mean/max of the same over workers: 1 is even. */
export interface LayerLoad {
  layer: number;
  rows: Spread;
  balancedness: number;
}

/** What changed, for those who tell the nodes. */
export interface ClusterEvents {
  /** Who is there or in what state has changed, or copies may be moved: call `settle` soon, and tell the new view. */
  onChange: () => void;
  /** A worker must hold other experts than before, or may leave. */
  onAssignment: (member: Member) => void;
  onBias: () => void;
  /** No router has reached a worker for too long, or one reaches it again. */
  onReach: (worker: Member) => void;
  /** No plan could be made for the present load: copies stay as they are. */
  onPlanFailed: (error: SwitchyardError) => void;
}

/** The coordinator's knowledge and decisions, without any input or output. Times are monotonic milliseconds. */
export class Cluster {
  readonly experts: ExpertOrder;
  readonly feedback: Feedback;
  readonly plans: PlacementPlans;
  private readonly membership: Membership;
  /** Above that of any coordinator that a member knew. */
  private ownTerm: number;
  /** Null: something has changed since it was made. */
  private knownView: ClusterViewInput | null = null;
  private lastView: ClusterViewInput | null = null;
  /** Of which loads and epoch the layers' are known; rows as the loads' proportions are. */
  private knownLoads: { version: number; epoch: number; layers: readonly LayerLoad[] } | null = null;

  constructor(
    readonly options: ClusterOptions,
    private readonly events: ClusterEvents,
  ) {
    this.ownTerm = options.term;
    this.membership = new Membership(options);
    this.experts = new ExpertOrder(options.model.layers);
    this.plans = new PlacementPlans({
      ...options,
      ...options.placement,
      experts: this.experts,
      onPlanned: () => this.changed(),
      onPlanFailed: events.onPlanFailed,
    });
    this.feedback = new Feedback(options.model.layers, options.feedback);
  }

  get term(): number {
    return this.ownTerm;
  }

  /** Of the placement; 0: none has been published. */
  get epoch(): number {
    return this.plans.placement.epoch;
  }

  members(): Member[] {
    return this.membership.all();
  }

  /** Throws NAME_TAKEN, MODEL_MISMATCH, RESOURCE_EXHAUSTED or INVALID_ARGUMENT; the cluster is then as before. */
  join(hello: NodeHello, nowMs: number): Member {
    const { model } = this.options;
    const topology = this.options.topology();
    checkHello(hello, this.experts);
    if (hello.modelFingerprint !== '' && hello.modelFingerprint !== model.fingerprint) {
      throw new SwitchyardError(
        'MODEL_MISMATCH',
        `${hello.role.toLowerCase()} ${hello.name} has model ${hello.modelFingerprint}; this cluster serves ${model.name}, ${model.fingerprint}`,
        { name: hello.name, fingerprint: hello.modelFingerprint, allowed: model.fingerprint },
      );
    }
    if (topology !== null && hello.role === 'WORKER') checkPlace(topology, hello);
    const before = this.membership.find(hello.role, hello.name);
    const member = this.membership.join(hello, nowMs);
    // A term that this coordinator itself has told is no other's.
    if (hello.term >= this.ownTerm && before?.told.term !== hello.term) this.ownTerm = hello.term + 1;
    if (hello.term > 0) this.plans.placedBefore(nowMs);
    if (hello.role === 'WORKER') {
      member.ready.replace(this.experts.numbersOf(expertsIn(hello.held)), this.experts.total);
      this.plans.join(member, nowMs);
    }
    this.changed();
    return member;
  }

  heard(member: Member, nowMs: number): void {
    member.heardAtMs = nowMs;
  }

  workerReport(member: Member, report: WorkerReport): void {
    if (member.hello.role !== 'WORKER')
      throw invalidArgument('kind', 'worker', 'router reports from a router');
    checkWorkerReport(report, this.experts);
    if (report.assignment > member.assignment)
      throw invalidArgument('assignment', report.assignment, `at most ${member.assignment}`);
    if (member.worker !== null) member.meter.add(member.worker, report);
    member.worker = report;
    // What it says before it has heard of its first assignment, that one will change.
    if (report.assignment === 0 && member.assignment > 0) return;
    const follows = report.assignment !== member.acknowledged;
    member.acknowledged = report.assignment;
    if (report.readyChanged)
      member.ready.replace(this.experts.numbersOf(expertsIn(report.ready)), this.experts.total);
    if (report.readyChanged || follows) this.changed();
  }

  routerReport(member: Member, report: RouterReport, nowMs: number): void {
    if (member.hello.role !== 'ROUTER')
      throw invalidArgument('kind', 'router', 'worker reports from a worker');
    checkRouterReport(report, this.experts);
    const { router } = member;
    member.router = report;
    if (report.linksChanged) member.links = report.links;
    const movedOn =
      router?.termInUse !== report.termInUse ||
      !isDeepStrictEqual(router.held, report.held) ||
      router.epochInUse !== report.epochInUse ||
      router.bytesInFlight > 0 !== report.bytesInFlight > 0;
    if (report.linksChanged || router?.notReady !== report.notReady) this.changed();
    else if (movedOn && this.plans.waitsForRouters) this.events.onChange();
    member.tokens += report.tokens;
    if (report.figures !== null) {
      member.batches = report.figures;
      for (const link of report.figures.traffic)
        if (this.membership.find('WORKER', link.worker)) member.traffic.set(link.worker, link);
    }
    let biased = false;
    for (const { layer, rows: packed, steered } of report.loads) {
      const rows = unpackUint32(packed);
      member.rows += rows.reduce((sum, count) => sum + count, 0);
      this.plans.loads.observe(layer, rows, nowMs);
      biased = this.feedback.observe(layer, steered.byteLength > 0 ? unpackUint32(steered) : rows) || biased;
    }
    if (biased) this.events.onBias();
  }

  leave(member: Member, reason: string): void {
    checkText('reason', reason);
    this.membership.leave(member, reason);
    this.plans.membersChanged();
    this.changed();
  }

  /** The member's stream is gone. Returns whether it lived until now. */
  end(member: Member, reason: string, nowMs: number): boolean {
    if (!this.membership.end(member, reason, nowMs)) return false;
    this.ended(member);
    return true;
  }

  /** Ends the members that have been silent for too long, and returns them. Forgets those that are long dead. */
  expire(nowMs: number, everyMs: number): Member[] {
    const expired = this.membership.expire(nowMs, everyMs);
    for (const member of expired) this.ended(member);
    const turned = lookAtReach(this.membership, nowMs);
    for (const member of turned) this.events.onReach(member);
    if (turned.length > 0) this.plans.reachChanged(nowMs);
    const isNeeded = ({ hello }: Member) =>
      hello.role === 'WORKER' && this.plans.placement.isMissed(hello.name);
    const forgotten = this.membership.forget(nowMs, isNeeded);
    for (const { hello } of forgotten) {
      if (hello.role !== 'WORKER') continue;
      this.plans.placement.free(hello.name);
      for (const member of this.members()) member.traffic.delete(hello.name);
    }
    if (forgotten.length > 0 || turned.length > 0) this.changed();
    else if (this.plans.isDue(nowMs)) this.events.onChange();
    return expired;
  }

  /** Decides what copies are to be where, and takes the next steps there. To be called soon after a change, however many there were. */
  settle(nowMs: number): void {
    const { assigned, published } = this.plans.settle(this.membership, this.ownTerm, nowMs);
    for (const member of assigned) this.events.onAssignment(member);
    if (assigned.length > 0 || published) this.knownView = null;
  }

  /** What an operator says of a worker; null: nothing any more. Throws INVALID_ARGUMENT for a name that no worker bears. */
  mark(worker: string, mark: Mark | null, nowMs: number): void {
    this.plans.mark(this.membership, worker, mark, nowMs);
    this.changed();
  }

  /** Plans for the present load, and begins to go there. Throws NOT_READY as long as no expert is placed. */
  rebalance(nowMs: number): Promise<RebalanceAnswerInput> {
    this.bringUpToDate(nowMs);
    return this.plans.rebalance(nowMs);
  }

  /** Begins to bring copies to where an operator says. Throws INVALID_ARGUMENT for what cannot be. */
  goTo(wanted: Placement, nowMs: number): RebalanceAnswerInput {
    this.bringUpToDate(nowMs);
    return this.plans.goTo(wanted);
  }

  /** What an operator asks is for who is there now; it is no reason to place experts for the first time. */
  private bringUpToDate(nowMs: number): void {
    if (this.plans.started) this.settle(nowMs);
  }

  /** Brings the view up to date with what was decided elsewhere. */
  changed(): void {
    this.knownView = null;
    this.events.onChange();
  }

  assignment(member: Member): AssignmentInput {
    const { version, experts } = this.plans.placement.assigned(member);
    member.assignment = version;
    const named = groupByLayer(experts.map((expert) => this.experts.at(expert)));
    member.told = { term: this.ownTerm, epoch: this.epoch };
    member.aside = this.plans.mayLoadAside(this.membership, member);
    const { aside } = member;
    return { term: this.ownTerm, version, experts: named, leave: this.plans.mayLeave(member), aside };
  }

  /** Where every expert is served, or the layers that changed since a placement of this term. */
  placement(since: { term: number; epoch: number } = { term: 0, epoch: 0 }): PlacementInput {
    const { placement } = this.plans;
    if (this.epoch === 0) return { workers: [], layers: [] };
    const layers = placement.describe(since.term === this.ownTerm ? since.epoch : 0);
    return { workers: [...placement.names], layers };
  }

  /** Every copy of every expert, and where it shall be. */
  copies() {
    const { placement } = this.plans;
    return Array.from({ length: this.experts.total }, (_, expert) => ({
      ...this.experts.at(expert),
      copies: placement.copiesOf(expert),
      target: placement.target[expert]!.map((slot) => placement.names[slot]!),
    }));
  }

  /** What the live nodes measure of themselves. */
  figures(): NodeFiguresInput[] {
    return this.members()
      .filter(({ alive }) => alive)
      .map(nodeFigures);
  }

  /** The keys of a router for its links to every live worker. */
  linkKeys({ hello }: Member): LinkKeyInput[] {
    return this.membership
      .living('WORKER')
      .map((worker) => ({ worker: worker.hello.name, key: linkKey(worker.linkSecret, hello.name) }));
  }

  /** Whether an expert is missed because its worker died without having said goodbye. */
  lostHolder(): boolean {
    const { placement } = this.plans;
    return this.members().some(
      ({ hello, alive, draining }) => !alive && !draining && placement.isMissed(hello.name),
    );
  }

  /** What routers and operators see of the cluster, without placement and figures: the same object until it says something else. */
  get view(): ClusterViewInput {
    if (this.knownView !== null) return this.knownView;
    const { ownTerm: term, plans } = this;
    const view = clusterView({ term, members: this.membership.all(), plans, model: this.options.model });
    if (!isDeepStrictEqual(view, this.lastView)) this.lastView = view;
    this.knownView = this.lastView!;
    return this.knownView;
  }

  /** What the experts of each layer get at present, and how even that is; none as long as next to nothing is routed. */
  layerLoads(nowMs: number): readonly LayerLoad[] {
    const perUnit = this.plans.loads.ratePerUnit(nowMs);
    if (perUnit === null || this.epoch === 0) return [];
    return this.layerProportions().map(({ layer, rows: { min, p50, max }, balancedness }) => {
      return { layer, rows: { min: min * perUnit, p50: p50 * perUnit, max: max * perUnit }, balancedness };
    });
  }

  private layerProportions(): readonly LayerLoad[] {
    const { epoch, knownLoads } = this;
    const { version, proportions } = this.plans.loads;
    if (knownLoads?.version === version && knownLoads.epoch === epoch) return knownLoads.layers;
    const layers = this.experts.layers.map(({ layer }) => {
      const rows = this.experts.sliceOf(layer, proportions);
      return { layer, rows: spreadOf(rows), balancedness: balancedness(rows, this.publishedOf(layer)) };
    });
    this.knownLoads = { version, epoch, layers };
    return layers;
  }

  /** How many copies serve each expert of a layer. */
  layerCopies(layer: number): Spread {
    return spreadOf(this.publishedOf(layer).map(({ length }) => length));
  }

  private publishedOf(layer: number): readonly (readonly number[])[] {
    const { first, experts } = this.experts.rangeOf(layer);
    return this.plans.placement.published.slice(first, first + experts);
  }

  private ended(member: Member): void {
    if (member.hello.role === 'WORKER') this.plans.end(member);
    this.changed();
  }
}

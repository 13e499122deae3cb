import { invalidArgument, SwitchyardError } from '../common/errors.js';
import { copiesMessage } from '../common/expert-copies.js';
import type { AssignmentInput } from '../common/generated/switchyard/v1/Assignment.js';
import type { ClusterViewInput } from '../common/generated/switchyard/v1/ClusterView.js';
import type { LinkKeyInput } from '../common/generated/switchyard/v1/LinkKey.js';
import type { NodeFiguresInput } from '../common/generated/switchyard/v1/NodeFigures.js';
import type { NodeHello } from '../common/generated/switchyard/v1/NodeHello.js';
import type { PlacementInput } from '../common/generated/switchyard/v1/Placement.js';
import type { RouterReport } from '../common/generated/switchyard/v1/RouterReport.js';
import type { WorkerReport } from '../common/generated/switchyard/v1/WorkerReport.js';
import { type ExpertId, expertsIn, groupByLayer } from '../common/layer-experts.js';
import { unpackUint32 } from '../common/packed.js';
import { ExpertOrder } from '../model/expert-order.js';
import type { ModelSpec } from '../model/spec.js';
import { linkKey } from '../transport/link-key.js';
import { balancedness, Feedback, type FeedbackOptions } from './balance.js';
import { checkHello, checkRouterReport, checkText, checkWorkerReport } from './check.js';
import { type Member, Membership } from './membership.js';
import { assignSeats, dealExperts, type Seats } from './placement.js';
import { checkPlace, orderWorkers, type Topology } from './topology.js';
import { clusterView, nodeFigures } from './view.js';

export interface ClusterOptions {
  model: ModelSpec;
  /** Workers that must have joined before experts are placed: the number of shares. */
  workers: number;
  topology: Topology | null;
  leaseMs: number;
  leftKeptMs: number;
  deadKeptMs: number;
  feedback: FeedbackOptions;
}

/** What changed, for those who tell the nodes. */
export interface ClusterEvents {
  /** Who is there, in what state, or where experts are: a new view. */
  onView: () => void;
  /** A worker must hold other experts than before. */
  onAssignment: (member: Member) => void;
  onBias: () => void;
}

/** The coordinator's knowledge and decisions, without any input or output. Times are monotonic milliseconds. */
export class Cluster {
  readonly experts: ExpertOrder;
  readonly feedback: Feedback;
  private readonly membership: Membership;
  /** The seat of each expert. */
  private readonly seatOf: Uint32Array;
  private seats: Seats;
  private placementEpoch = 0;
  private signature = '';
  /** Null: something has changed since it was made. */
  private knownView: ClusterViewInput | null = null;

  constructor(
    readonly options: ClusterOptions,
    private readonly events: ClusterEvents,
  ) {
    this.membership = new Membership(options);
    this.experts = new ExpertOrder(options.model.layers);
    this.seatOf = dealExperts(this.experts.total, options.workers);
    this.seats = new Array<null>(options.workers).fill(null);
    this.feedback = new Feedback(options.model.layers, options.feedback);
  }

  get epoch(): number {
    return this.placementEpoch;
  }

  members(): Member[] {
    return this.membership.all();
  }

  /** Throws NAME_TAKEN, MODEL_MISMATCH, RESOURCE_EXHAUSTED or INVALID_ARGUMENT; the cluster is then as before. */
  join(hello: NodeHello, nowMs: number): Member {
    const { model, topology } = this.options;
    checkHello(hello);
    if (hello.modelFingerprint !== '' && hello.modelFingerprint !== model.fingerprint) {
      throw new SwitchyardError(
        'MODEL_MISMATCH',
        `${hello.role.toLowerCase()} ${hello.name} has model ${hello.modelFingerprint}; this cluster serves ${model.name}, ${model.fingerprint}`,
        { name: hello.name, fingerprint: hello.modelFingerprint, allowed: model.fingerprint },
      );
    }
    if (topology !== null && hello.role === 'WORKER') checkPlace(topology, hello);
    const member = this.membership.join(hello, nowMs);
    this.place();
    return member;
  }

  heard(member: Member, nowMs: number): void {
    member.heardAtMs = nowMs;
  }

  workerReport(member: Member, report: WorkerReport): void {
    if (member.hello.role !== 'WORKER')
      throw invalidArgument('kind', 'worker', 'router reports from a router');
    checkWorkerReport(report, this.experts);
    member.worker = report;
    if (!report.readyChanged) return;
    member.ready.replace(this.experts.numbersOf(expertsIn(report.ready)), this.experts.total);
    this.viewChanged();
  }

  routerReport(member: Member, report: RouterReport): void {
    if (member.hello.role !== 'ROUTER')
      throw invalidArgument('kind', 'router', 'worker reports from a worker');
    checkRouterReport(report, this.experts);
    const readinessChanged = member.router?.notReady !== report.notReady;
    member.router = report;
    if (report.linksChanged) member.links = report.links;
    if (report.linksChanged || readinessChanged) this.viewChanged();
    let changed = false;
    for (const { layer, rows, steered } of report.loads)
      changed =
        this.feedback.observe(layer, unpackUint32(steered.byteLength > 0 ? steered : rows)) || changed;
    if (changed) this.events.onBias();
  }

  leave(member: Member, reason: string): void {
    checkText('reason', reason);
    this.membership.leave(member, reason);
    this.place();
  }

  /** The member's stream is gone. Returns whether it lived until now. */
  end(member: Member, reason: string, nowMs: number): boolean {
    if (!this.membership.end(member, reason, nowMs)) return false;
    this.place();
    return true;
  }

  /** Ends the members that have been silent for too long, and returns them. Forgets those that are long dead. */
  expire(nowMs: number, everyMs: number): Member[] {
    const expired = this.membership.expire(nowMs, everyMs);
    if (expired.length > 0) this.place();
    // The holder of a seat is named by errors until its experts are somewhere else.
    const isNeeded = ({ hello }: Member) => hello.role === 'WORKER' && this.seats.includes(hello.name);
    if (this.membership.forget(nowMs, isNeeded)) this.viewChanged();
    return expired;
  }

  assignment(member: Member): AssignmentInput {
    const seat = this.seats.indexOf(member.hello.name);
    return { epoch: this.placementEpoch, experts: groupByLayer(this.expertsOf(seat)) };
  }

  /** Where every expert is; nowhere as long as no worker is seated. */
  placement(): PlacementInput {
    if (this.placementEpoch === 0) return { workers: [], layers: [] };
    return {
      // The seats are taken all at once.
      workers: this.seats.map((holder) => holder!),
      layers: this.experts.layers.map(({ layer }) =>
        copiesMessage(
          layer,
          Array.from(this.experts.sliceOf(layer, this.seatOf), (seat) => [seat]),
        ),
      ),
    };
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

  /** Whether a worker that holds experts is dead without having said goodbye. */
  lostHolder(): boolean {
    return this.seats.some((name) => {
      const member = name === null ? undefined : this.membership.find('WORKER', name);
      return member?.alive === false && !member.draining;
    });
  }

  /** What routers and operators see of the cluster, without placement and figures. */
  get view(): ClusterViewInput {
    this.knownView ??= clusterView({
      epoch: this.placementEpoch,
      members: this.membership.all(),
      experts: this.experts,
      seatOf: this.seatOf,
      seats: this.seats,
    });
    return this.knownView;
  }

  /** Mean/max of rows over workers in the last window of a layer; null if no expert is placed. */
  balancedness(layer: number): number | null {
    const rows = this.feedback.lastWindow(layer);
    if (rows === undefined || this.placementEpoch === 0) return null;
    return balancedness(rows, this.experts.sliceOf(layer, this.seatOf));
  }

  private *expertsOf(seat: number): Generator<ExpertId> {
    for (const [index, taken] of this.seatOf.entries()) if (taken === seat) yield this.experts.at(index);
  }

  /** Gives seats to workers, and starts an epoch if an expert's worker is another one than before, or another process. */
  private place(): void {
    const serving = this.membership.serving('WORKER');
    const order = orderWorkers(
      serving.map((member) => member.hello),
      this.options.topology,
    );
    const before = this.seats;
    this.seats = assignSeats(before, order);
    const holders = new Map(serving.map((member) => [member.hello.name, member.incarnation]));
    const signature = this.seats.map((name) => `${name}#${holders.get(name ?? '') ?? 'dead'}`).join();
    if (signature !== this.signature && this.seats.some((holder) => holder !== null))
      this.placementEpoch += 1;
    this.signature = signature;
    for (const member of serving) {
      const seat = this.seats.indexOf(member.hello.name);
      if (seat >= 0 && before[seat] !== member.hello.name) this.events.onAssignment(member);
    }
    this.viewChanged();
  }

  private viewChanged(): void {
    this.knownView = null;
    this.events.onView();
  }
}

import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { Placement } from '../common/generated/switchyard/v1/Placement.js';
import type { RebalanceAnswerInput } from '../common/generated/switchyard/v1/RebalanceAnswer.js';
import type { DeviceRoom } from '../model/device-bytes.js';
import type { ExpertOrder } from '../model/expert-order.js';
import { expertsPerToken, type ModelSpec } from '../model/spec.js';
import type { PlanInput } from '../placement/input.js';
import type { LoadLimits } from '../placement/loading.js';
import type { Plan } from '../placement/plan.js';
import { LeavingWorkers } from './leaving.js';
import { ExpertLoads } from './loads.js';
import type { Member, Membership } from './membership.js';
import { roomForExperts } from './memory.js';
import { ClusterPlacement } from './placement.js';
import { type Candidate, Planning } from './planning.js';
import { isBusy, routersUse } from './routers-use.js';
import { orderWorkers, type Topology } from './topology.js';
import { checkMemory, targetOf } from './wanted.js';

export interface PlacementOptions {
  /** Workers that must have joined before experts are placed for the first time. */
  workers: number;
  /** Copies of each expert at least, as far as there are workers and memory. */
  copies: number;
  /** Copies of a layer beyond those; null: as many as memory holds. */
  replicaSlots: number | null;
  /** How often a plan is made that is followed if it pays; 0: those that are made are only told. */
  rebalanceSeconds: number;
  /** How fast copies of experts that serve already may be loaded, and how many at once. */
  rebalanceBytesPerSecond: number;
  rebalanceLoads: number;
  /** Makes a plan, off the event loop where that takes long. */
  plan: (input: PlanInput) => Promise<Plan>;
}

export interface PlansOptions extends PlacementOptions {
  model: ModelSpec;
  experts: ExpertOrder;
  topology: () => Topology | null;
  leaseMs: number;
  /** A plan is made that `settle` is to follow. */
  onPlanned: () => void;
  /** None could be made by itself; what is told of one that an operator asked for is told to him alone. */
  onPlanFailed: (error: SwitchyardError) => void;
}

/** How often a plan is made that is only told, in seconds. */
const dryRunSeconds = 60;

/** What an operator has said of a worker: it gets no new copies, or also those that it has go elsewhere. */
export type Mark = 'CORDONED' | 'DRAINED';

/** What `settle` did: workers that must be told an assignment, and whether routers must be told a placement. */
export interface Settled {
  assigned: Member[];
  published: boolean;
}

/** Decides where copies of experts shall be, as workers come and go and loads change. Times are monotonic milliseconds. */
export class PlacementPlans {
  readonly placement: ClusterPlacement;
  readonly loads: ExpertLoads;
  readonly limits: LoadLimits;
  /** By name of the worker, whether it is there or not. */
  readonly marks = new Map<string, Mark>();
  /** Why copies are missing that there should be. */
  lacking: SwitchyardError | null = null;
  /** Whether experts have been placed. */
  started = false;
  /** Of the last plan that was made for the present load, followed or not; null: there is none. */
  outlook: Pick<Plan, 'copiesToLoad' | 'secondsToLoad' | 'netGainSeconds'> | null = null;
  /** Whether workers held experts when they were placed. */
  private adopted = false;
  private readonly planning: Planning;
  private readonly expertBytes: number;
  /** When it was heard that a coordinator before this one had placed experts. */
  private placedBeforeMs: number | null = null;
  /** Whether the target must be looked at again. */
  private stale = true;
  /** Counts the changes of who may have copies: a plan for others is void. */
  private generation = 0;
  private planAtMs = Number.POSITIVE_INFINITY;
  /** Of what the last plan was made by which copies stay where they are; null: they do not. */
  private kept: { version: number; generation: number; target: number[][] } | null = null;
  private candidates: readonly Candidate[] = [];
  /** Names of workers that no router reaches. */
  private unreached: ReadonlySet<string> = new Set();
  private lastingOn = false;
  private readonly leaving: LeavingWorkers;

  constructor(private readonly options: PlansOptions) {
    const { experts, model, copies, rebalanceLoads, rebalanceBytesPerSecond } = options;
    this.limits = { loads: rebalanceLoads, bytesPerSecond: rebalanceBytesPerSecond };
    this.expertBytes = model.expertBytes;
    this.loads = new ExpertLoads(experts);
    this.placement = new ClusterPlacement(experts, this.expertBytes, this.limits);
    this.leaving = new LeavingWorkers(this.placement, copies);
    const topK = expertsPerToken(model);
    this.planning = new Planning({ ...options, expertBytes: this.expertBytes, topK, limits: this.limits });
  }

  /** Workers that are waited for before experts are placed for the first time. */
  get workersExpected(): number {
    return this.options.workers;
  }

  /** Copies of each expert at least, as far as there are workers and memory. */
  get copiesMin(): number {
    return this.options.copies;
  }

  /** Whether a next step waits until routers have moved on. */
  get waitsForRouters(): boolean {
    return this.placement.drains || this.lastingOn;
  }

  join(member: Member, nowMs: number): void {
    if (this.started) this.placement.join(member);
    else if (member.ready.count > 0) this.placedBefore(nowMs);
    this.membersChanged();
    this.planSoon(nowMs);
  }

  /** A member has come from a coordinator before this one: its workers are not waited for longer than they need to come back. */
  placedBefore(nowMs: number): void {
    this.placedBeforeMs ??= nowMs;
  }

  end(member: Member): void {
    this.placement.end(member);
    this.leaving.forget(member);
    this.membersChanged();
  }

  /** Workers came, went, or said that they leave. */
  membersChanged(): void {
    this.stale = true;
    this.generation += 1;
  }

  /** Whether `settle` has something to do though nothing has happened. */
  isDue(nowMs: number): boolean {
    if (this.started) return this.placement.waits || this.isPlanDue(nowMs);
    return this.placedBeforeMs !== null && nowMs - this.placedBeforeMs >= this.options.leaseMs;
  }

  /** Copies that are there for loads of before, or of which nobody knows why, wait for loads to be measured; only those that were dealt do not. */
  private isPlanDue(nowMs: number): boolean {
    if (nowMs < this.planAtMs) return false;
    return (!this.adopted && !this.loads.heard) || this.loads.rates(nowMs) !== null;
  }

  /** Routers have come to reach workers, or reach them no more. */
  reachChanged(nowMs: number): void {
    this.membersChanged();
    this.planSoon(nowMs);
  }

  settle(membership: Membership, term: number, nowMs: number): Settled {
    const living = membership.living('WORKER');
    if (this.started || this.mayStart(membership, nowMs)) {
      const routers = membership.living('ROUTER');
      const room = roomForExperts(living, this.options.model);
      const staying = living.filter(({ draining }) => !draining);
      this.unreached = new Set(
        living.filter(({ unreached }) => unreached !== '').map(({ hello }) => hello.name),
      );
      this.candidates = this.candidatesOf(
        staying.filter((member) => !this.isDrained(member)),
        room,
      );
      const starts = !this.started;
      if (starts) this.start(living, nowMs);
      if (this.stale) {
        const drained = staying.filter((member) => this.isDrained(member));
        this.retarget(living, routers, this.candidatesOf(drained, room), nowMs);
      }
      if (this.isPlanDue(nowMs)) void this.replan(nowMs);
      const capacity = (member: Member) => Math.floor(room.get(member)!.memoryBytes / this.expertBytes);
      const steps = this.placement.reconcile(routersUse(routers, term, this.placement), capacity, nowMs);
      if (steps.stuck.length > 0) this.kept = null;
      // At the start all are told what they hold: what one still loads for an earlier coordinator is none of it.
      const isTold = ({ hello }: Member) => starts || steps.assigned.has(this.placement.slotOf(hello.name));
      const assigned = new Set(living.filter(isTold));
      for (const member of this.leaving.release(living, this.started)) assigned.add(member);
      for (const member of this.leaving.hurried(living)) assigned.add(member);
      return { assigned: [...assigned], published: steps.published.length > 0 };
    }
    return { assigned: this.leaving.release(living, this.started), published: false };
  }

  /** Whether nobody waits for what a worker has to load. */
  mayLoadAside(membership: Membership, member: Member): boolean {
    return this.leaving.isSpare(member, membership.living('WORKER'));
  }

  /** Whether a worker that leaves may end: nobody uses what it holds. */
  mayLeave(member: Member): boolean {
    return this.leaving.mayLeave(member);
  }

  /** Throws INVALID_ARGUMENT for a name that no worker bears. Null takes a mark back. */
  mark(membership: Membership, worker: string, mark: Mark | null, nowMs: number): void {
    if (membership.find('WORKER', worker) === undefined && !this.marks.has(worker)) {
      const names = membership.living('WORKER').map(({ hello }) => hello.name);
      names.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
      throw invalidArgument(
        'worker',
        worker,
        names.length === 0 ? 'none: no worker has joined' : names.join(', '),
      );
    }
    if (mark === null) this.marks.delete(worker);
    else this.marks.set(worker, mark);
    this.membersChanged();
    this.planSoon(nowMs);
  }

  /** Plans for the present load, and begins to go there. Throws NOT_READY as long as no expert is placed. */
  async rebalance(nowMs: number): Promise<RebalanceAnswerInput> {
    this.checkStarted();
    const { generation, candidates } = this;
    if (candidates.length === 0)
      throw new SwitchyardError('NOT_READY', 'there is no worker that may have copies');
    const planned = await this.options.plan(this.planInput(nowMs));
    if (generation !== this.generation)
      throw new SwitchyardError('NOT_READY', 'workers came or went while the plan was made: ask again');
    this.follow(this.planned(candidates, planned));
    const { copiesToLoad: toLoad, copiesToDrop: toDrop, bytesToLoad, netGainSeconds } = planned;
    return { toLoad, toDrop, bytesToLoad, netGainSeconds };
  }

  /** Begins to bring copies to where an operator says. Throws INVALID_ARGUMENT for what cannot be. */
  goTo(wanted: Placement): RebalanceAnswerInput {
    this.checkStarted();
    const { options, candidates, placement, marks, lacking, expertBytes } = this;
    const { experts, copies } = options;
    const target = targetOf(wanted, {
      experts,
      candidates,
      present: placement.target,
      marks,
      unreached: this.unreached,
      copies,
      lacking,
    });
    this.keepFromClosed(candidates, target);
    checkMemory(candidates, target, expertBytes);
    const toLoad = copiesBeyond(target, placement.target);
    const toDrop = copiesBeyond(placement.target, target);
    this.follow(target);
    return { toLoad, toDrop, bytesToLoad: toLoad * expertBytes, netGainSeconds: 0 };
  }

  private checkStarted(): void {
    if (!this.started) throw new SwitchyardError('NOT_READY', 'no expert is placed yet');
  }

  private follow(target: number[][]): void {
    this.placement.target = target;
    this.options.onPlanned();
  }

  private planSoon(nowMs: number): void {
    if (this.options.rebalanceSeconds > 0) this.planAtMs = nowMs;
  }

  /**
   * What workers hold from before stays where it is, so it must be known first: all experts are held as often as they are to be, or whoever holds the others has
   * had the time to say so.
   */
  private mayStart(membership: Membership, nowMs: number): boolean {
    const { workers, copies, experts } = this.options;
    const serving = membership.serving('WORKER');
    if (serving.length >= workers || this.isDue(nowMs)) return serving.length > 0;
    if (serving.length < copies) return false;
    for (let expert = 0; expert < experts.total; expert += 1)
      if (serving.filter(({ ready }) => ready.has(expert)).length < copies) return false;
    return true;
  }

  private start(living: readonly Member[], nowMs: number): void {
    this.started = true;
    const { placement, candidates } = this;
    for (const member of living) placement.join(member);
    this.candidates = candidates.map((one) => ({ ...one, slot: placement.slotOf(one.name) }));
    this.adopted = living.some(({ ready }) => ready.count > 0);
    if (!this.adopted) placement.target = this.planning.dealt(this.candidates);
    this.planAtMs = this.nextPlanMs(nowMs);
  }

  /** Whether it is to have no copies: an operator wants that, or no router reaches it. */
  private isDrained({ hello, unreached }: Member): boolean {
    return unreached !== '' || this.marks.get(hello.name) === 'DRAINED';
  }

  /** As little change as who is there now makes necessary. What would be nowhere else is where it should not be: on workers that are drained. */
  private retarget(
    living: readonly Member[],
    routers: readonly Member[],
    drained: readonly Candidate[],
    nowMs: number,
  ): void {
    const { placement, candidates, planning } = this;
    // Who leaves last serves what is under way; who is drained keeps what fits nowhere else.
    this.lastingOn =
      candidates.length === 0 && drained.length === 0 && living.length > 0 && routers.some(isBusy);
    this.stale = this.lastingOn;
    const slotsOf = (members: readonly { slot: number }[]) => new Set(members.map(({ slot }) => slot));
    const leavingSlots = living.map(({ hello }) => ({ slot: placement.slotOf(hello.name) }));
    const lasting = placement.present(slotsOf(this.lastingOn ? leavingSlots : drained));
    const rates = this.loads.rates(nowMs);
    const { target, lacking } = planning.required(candidates, placement.present(slotsOf(candidates)), rates);
    const isNowhere = (expert: number) => target[expert]!.length === 0;
    const kept = lasting.map((slots, expert) => (isNowhere(expert) ? slots : []));
    // Nothing else stays there, so that all other room is free, or will be.
    const last = drained.length === 0 ? null : planning.required(drained, kept, rates, isNowhere);
    placement.target = target.map((slots, expert) =>
      slots.length > 0 ? slots : (last?.target ?? kept)[expert]!,
    );
    this.lacking = placement.target.some((slots) => slots.length === 0)
      ? (last?.lacking ?? lacking)
      : lacking;
  }

  private async replan(nowMs: number): Promise<void> {
    const { rebalanceSeconds, plan } = this.options;
    this.planAtMs = this.nextPlanMs(nowMs);
    // What does not pay pays less as the load fades.
    const { version } = this.loads;
    const { target } = this.placement;
    const { kept } = this;
    if (kept?.version === version && kept.generation === this.generation && kept.target === target) return;
    this.outlook = null;
    if (this.candidates.length === 0 || this.lacking !== null) return;
    const { generation, candidates } = this;
    const planned = await plan(this.planInput(nowMs)).catch((error) => {
      this.options.onPlanFailed(asSwitchyardError(error));
      return null;
    });
    // Others may have copies now: then they are planned for.
    if (planned === null || generation !== this.generation) return;
    this.outlook = planned;
    if (planned.copiesToLoad === 0) this.kept = { version, generation, target };
    else if (rebalanceSeconds > 0) this.follow(this.planned(candidates, planned));
  }

  private nextPlanMs(nowMs: number): number {
    return nowMs + (this.options.rebalanceSeconds || dryRunSeconds) * 1000;
  }

  /** The target of a plan, less what it would bring to cordoned workers. */
  private planned(candidates: readonly Candidate[], { target }: Plan): number[][] {
    const slots = this.planning.target(candidates, target);
    this.keepFromClosed(candidates, slots);
    return slots;
  }

  /** Experts that would come to cordoned workers stay where they are to be now. */
  private keepFromClosed(candidates: readonly Candidate[], target: number[][]): void {
    const closed = new Set(candidates.filter(({ cordoned }) => cordoned).map(({ slot }) => slot));
    for (const [expert, slots] of target.entries()) {
      const present = this.placement.target[expert]!;
      if (slots.some((slot) => closed.has(slot) && !present.includes(slot))) target[expert] = [...present];
    }
  }

  private planInput(nowMs: number): PlanInput {
    const { candidates, placement } = this;
    const present = placement.present(new Set(candidates.map(({ slot }) => slot)));
    return this.planning.input(candidates, present, this.loads.rates(nowMs));
  }

  /** In the order in which shares are dealt. */
  private candidatesOf(members: readonly Member[], room: ReadonlyMap<Member, DeviceRoom>): Candidate[] {
    const byName = new Map(members.map((member) => [member.hello.name, member]));
    const order = orderWorkers(
      members.map(({ hello }) => hello),
      this.options.topology(),
    );
    return order.map((name) => {
      const member = byName.get(name)!;
      const { hello, meter } = member;
      return {
        slot: this.placement.slotOf(name),
        name,
        host: hello.host,
        ...room.get(member)!,
        cordoned: this.marks.get(name) === 'CORDONED',
        meter,
      };
    });
  }
}

function copiesBeyond(
  copies: readonly (readonly number[])[],
  others: readonly (readonly number[])[],
): number {
  return copies.reduce(
    (sum, slots, expert) => sum + slots.filter((slot) => !others[expert]!.includes(slot)).length,
    0,
  );
}

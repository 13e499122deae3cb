import type { ControlService } from '../coordinator/control-service.js';
import type { Member } from '../coordinator/membership.js';
import { indexPlacement, type PlacementIndex } from '../router/placement.js';
import { Adoptions } from './adoptions.js';
import type { Leader, SimulatedCluster } from './cluster.js';
import { checkDeparture } from './departures.js';
import { GoingOn } from './going-on.js';
import { MembersJudged } from './members.js';
import type { RouterNode, WorkerNode } from './nodes.js';
import type { SimulatedProcess } from './process.js';

interface Version {
  term: number;
  epoch: number;
}

/** For so long routers may still be told of what a member of this name had before. */
const newMsMax = 100;

/** The placement of a router, and since when it knows it. */
interface Known extends Version {
  sinceMs: number;
  /** Null: it has copies of the one before beside its own, for what the router does not reach. */
  text: string | null;
}

/** How long experts that are held may be without a copy that serves: they are reported, published and told within it. */
const unservedMsMax = 4_000;

/** What holds at any moment, judged from outside: by what processes hold and know, not by what they say. */
export class Invariants {
  private readonly known = new Map<SimulatedProcess, Known>();
  /** When a member was first seen. */
  private readonly joinedMs = new WeakMap<Member, number>();
  /** Expert to when it was first seen held by a live member and served by none. */
  private readonly unservedSince = new Map<string, number>();

  /** When coordinators placed experts first. */
  private readonly placedMs = new WeakMap<ControlService, number>();
  private readonly goingOn: GoingOn;
  private readonly members: MembersJudged;
  private readonly adoptions: Adoptions;

  constructor(
    private readonly cluster: SimulatedCluster,
    private readonly violated: (what: string) => void,
  ) {
    this.goingOn = new GoingOn(cluster, violated);
    this.members = new MembersJudged(cluster, violated);
    this.adoptions = new Adoptions(cluster.time, violated);
    cluster.judge = {
      viewed: (control) => this.checkAdopted(control),
      refused: (name, why) => violated(`${name} says what a coordinator refuses: ${why}`),
      departed: (node, askedMs) => {
        const placedMs = (control: ControlService) => this.placedMs.get(control) ?? Number.POSITIVE_INFINITY;
        const wrong = checkDeparture(node, askedMs, cluster, placedMs);
        if (wrong !== null) violated(wrong);
      },
    };
  }

  check(): void {
    const { leaders, routers, workers } = this.cluster;
    if (leaders.length > 1)
      this.violated(`${leaders.map(({ process }) => process.name).join(' and ')} lead at once`);
    for (const { node } of workers) if (node !== null) this.checkMemory(node);
    for (const { node } of routers) {
      if (node === null) continue;
      this.checkRouter(node);
      this.goingOn.check(node);
      this.adoptions.check(node, this.incarnationOf(node));
    }
    for (const leader of leaders) {
      this.members.check(leader);
      this.checkAgreement(leader);
      this.checkServed(leader);
    }
  }

  /** Where a coordinator that has just begun wants copies: where all are held as often as they are to be, nothing moves because it began. */
  private checkAdopted(control: ControlService): void {
    const { cluster } = control;
    const { started, placement, marks } = cluster.plans;
    if (!started || this.placedMs.has(control)) return;
    this.placedMs.set(control, this.cluster.time.nowMs);
    // An operator may drain a worker before it has begun.
    if ([...marks.values()].includes('DRAINED')) return;
    const serving = cluster
      .members()
      .filter(({ hello, alive, draining }) => hello.role === 'WORKER' && alive && !draining);
    const holders = placement.target.map((_, expert) =>
      serving.filter(({ ready }) => ready.has(expert)).map(({ hello }) => hello.name),
    );
    const { copies } = this.cluster.scenario.placement;
    if (holders.some(({ length }) => length < copies)) return;
    for (const [expert, slots] of placement.target.entries()) {
      const wanted = slots.map((slot) => placement.names[slot]!);
      if (wanted.every((name) => holders[expert]!.includes(name))) continue;
      this.violated(
        `a coordinator began, and wants expert ${expert} on ${wanted.join(', ')}, while ${holders[expert]!.join(', ')} hold it`,
      );
    }
  }

  /** Of a router at the coordinator that leads; null: it is no member there. */
  private incarnationOf({ process }: RouterNode): number | null {
    const [leader] = this.cluster.leaders;
    const member = leader?.control.cluster
      .members()
      .find(
        ({ hello, alive }) =>
          alive && hello.role === 'ROUTER' && this.cluster.processOf(hello.name, hello.pid) === process,
      );
    return member?.incarnation ?? null;
  }

  private checkMemory({ process, backend, memoryBytes }: WorkerNode): void {
    if (backend.bytesHeldMax > memoryBytes)
      this.violated(`${process.name} held ${backend.bytesHeldMax} bytes of experts; allowed: ${memoryBytes}`);
  }

  /** Versions only rise, and what is published to a member is held. */
  private checkRouter({ process, core }: RouterNode): void {
    const { placement } = core.cluster;
    if (placement === null) return;
    const { term, epoch } = placement;
    const before = this.known.get(process);
    if (before !== undefined && isOlder(placement, before))
      this.violated(
        `${process.name} went from (term, epoch) (${before.term}, ${before.epoch}) back to (${term}, ${epoch})`,
      );
    if (before === undefined || isOlder(before, placement)) {
      const named = [...placement.copies].map(([layer, { offsets, workers }]) => [
        layer,
        [...offsets],
        [...workers].map((worker) => placement.workers[worker]),
      ]);
      const text = placement.held.length === 0 ? JSON.stringify(named) : null;
      this.known.set(process, { term, epoch, sinceMs: this.cluster.time.nowMs, text });
    }
    this.checkHeld(process, core, placement);
  }

  /** Members of one coordinator that know one version know one placement. */
  private checkAgreement({ process, control }: Leader): void {
    const first = new Map<string, Known>();
    for (const { node } of this.cluster.routers) {
      const known = node?.core.cluster.connected ? this.known.get(node.process) : undefined;
      if (known === undefined || known.text === null || known.term !== Number(control.view.term)) continue;
      if (this.cluster.network.cutSince(node!.process.host, process.host) !== null) continue;
      const key = `${known.term}/${known.epoch}`;
      const other = first.get(key) ?? known;
      first.set(key, other);
      if (other.text !== known.text)
        this.violated(`(term, epoch) (${known.term}, ${known.epoch}) names two placements`);
    }
  }

  /** What a member is told to be at a worker, by the coordinator that both belong to, is there until the member is told otherwise. */
  private checkHeld(
    process: SimulatedProcess,
    { cluster }: RouterNode['core'],
    placement: PlacementIndex,
  ): void {
    const { name, host } = process;
    const { sinceMs } = this.known.get(process)!;
    const { network, workers } = this.cluster;
    const [leader] = this.cluster.leaders;
    if (leader === undefined) return;
    const { control } = leader;
    if (Number(control.view.term) !== placement.term || !cluster.connected) return;
    if (network.cutSince(host, leader.process.host) !== null) return;
    const live = control.cluster.members().filter(({ alive, draining }) => alive && !draining);
    const nowMs = this.cluster.time.nowMs;
    for (const member of live) if (!this.joinedMs.has(member)) this.joinedMs.set(member, nowMs);
    const isMember = (node: string) =>
      live.some((member) => {
        const { hello } = member;
        return hello.name === node.split('#')[0] && nowMs - this.joinedMs.get(member)! >= newMsMax;
      });
    if (!isMember(name)) return;
    for (const { name: worker, node } of workers) {
      const index = placement.workers.indexOf(worker);
      if (node === null || node.draining || index < 0 || !isMember(worker) || !node.core.connected) continue;
      if (node.process.startedMs > sinceMs) continue;
      const held = node.holds();
      for (const expert of expertsAt(placement, index))
        if (!held.has(expert))
          this.violated(`${name} is told that ${worker} has expert ${expert}, which it does not hold`);
    }
  }

  /**
   * An expert that a live member holds is served by some. While the coordinator stands still or has just begun it cannot know, nor of members
   * that it cannot hear.
   */
  private checkServed({ process, control }: Leader): void {
    const { time, workers, network } = this.cluster;
    const placement = process.state === 'running' ? publishedBy(control) : null;
    const served = new Set<string>();
    const held = new Set<string>();
    if (placement !== null) {
      for (const [layer, { offsets }] of placement.copies)
        for (let expert = 0; expert + 1 < offsets.length; expert += 1)
          if (offsets[expert + 1]! > offsets[expert]!) served.add(`${layer}/${expert}`);
      for (const { node } of workers) {
        if (node === null || node.draining || node.process.state !== 'running') continue;
        if (!node.core.connected || network.cutSince(node.process.host, process.host) !== null) continue;
        for (const expert of node.holds()) held.add(expert);
      }
    }
    for (const expert of this.unservedSince.keys())
      if (!held.has(expert) || served.has(expert)) this.unservedSince.delete(expert);
    for (const expert of held) {
      if (served.has(expert)) continue;
      const since = this.unservedSince.get(expert) ?? time.nowMs;
      this.unservedSince.set(expert, since);
      if (time.nowMs - since > unservedMsMax) this.violated(`expert ${expert} is held, and no copy serves`);
    }
  }
}

/** Null: nothing is placed yet. */
function publishedBy({ cluster, view }: ControlService) {
  const epoch = Number(view.epoch ?? 0);
  if (epoch === 0) return null;
  const { workers = [], layers = [] } = cluster.placement();
  const whole = layers.map(({ layer = 0, copies = [], workers: holders = [] }) => ({
    layer,
    copies,
    workers: holders,
  }));
  return indexPlacement({ term: Number(view.term ?? 0), epoch }, { workers, layers: whole }, null);
}

/** The experts that a placement has at a worker, by its index. */
function* expertsAt({ copies }: PlacementIndex, worker: number): Generator<string> {
  for (const [layer, { offsets, workers }] of copies)
    for (let expert = 0; expert + 1 < offsets.length; expert += 1)
      if (workers.subarray(offsets[expert]!, offsets[expert + 1]!).includes(worker))
        yield `${layer}/${expert}`;
}

function isOlder(a: Version, b: Version): boolean {
  return a.term < b.term || (a.term === b.term && a.epoch < b.epoch);
}

/** What is left when nothing is under way any more: nothing. */
export function leftBehind({ routers, workers }: SimulatedCluster): string | null {
  for (const { node } of routers) {
    if (node === null) continue;
    const { core, process } = node;
    const own = core.cluster.weights === null ? 0 : core.cluster.model!.layers.length;
    const left = {
      batches: core.batches.liveCount,
      budget: core.budget.used,
      credit: core.links.open().reduce((sum, { stats }) => sum + stats.bytesOutstanding, 0),
      slabs: process.rows.arenaStats().slabs - own,
    };
    if (Object.values(left).some((value) => value !== 0))
      return `${process.name} has ${JSON.stringify(left)}`;
  }
  for (const { node } of workers) {
    if (node === null) continue;
    const { core, process } = node;
    const left = {
      bytes: core.loaded?.executor.bytesHeld ?? 0,
      rows: core.loaded?.executor.rowsQueued ?? 0,
      slabs: process.rows.arenaStats().slabs,
    };
    if (Object.values(left).some((value) => value !== 0))
      return `${process.name} has ${JSON.stringify(left)}`;
  }
  return null;
}

import { expect, test } from '@jest/globals';
import fc from 'fast-check';
import { groupByLayer } from '../../services/common/layer-experts.js';
import type { Member } from '../../services/coordinator/membership.js';
import type { Mark } from '../../services/coordinator/plans.js';
import { allExperts, expertBytes, Scene, total } from './scene.js';

/** What happens to a cluster; `at` picks one of the workers that are there. */
type Event =
  | { kind: 'join'; room: number; host: string; held: number; mark: Mark | null }
  | { kind: 'kill'; at: number; again: boolean }
  | { kind: 'leave'; at: number }
  | { kind: 'mark'; at: number; mark: Mark | null }
  /** Seconds pass, and in each of them a router comes to the latest placement or does not. */
  | { kind: 'pass'; keepsUp: boolean[] };

interface Worker {
  name: string;
  room: number;
  member: Member;
}

const mark = fc.constantFrom<Mark | null>('DRAINED', 'DRAINED', 'CORDONED', null);
const at = fc.nat(1_000);
const join = fc.record({
  kind: fc.constant('join' as const),
  room: fc.integer({ min: 3, max: total + 2 }),
  host: fc.constantFrom('h0', 'h1'),
  held: fc.nat(total),
  mark,
});
const event: fc.Arbitrary<Event> = fc.oneof(
  join,
  fc.record({ kind: fc.constant('kill' as const), at, again: fc.boolean() }),
  fc.record({ kind: fc.constant('leave' as const), at }),
  fc.record({ kind: fc.constant('mark' as const), at, mark }),
  fc.record({ kind: fc.constant('mark' as const), at, mark }),
  fc.record({
    kind: fc.constant('pass' as const),
    keepsUp: fc.array(fc.boolean(), { minLength: 1, maxLength: 5 }),
  }),
);
const settings = fc.record({
  workers: fc.integer({ min: 1, max: 3 }),
  copies: fc.integer({ min: 1, max: 2 }),
  rebalanceSeconds: fc.constantFrom(0, 0, 5),
  rebalanceBytesPerSecond: fc.constantFrom(expertBytes / 2, 2 ** 40),
  rebalanceLoads: fc.constantFrom(1, 8),
});

class Upheaval {
  readonly live: Worker[] = [];
  private readonly leaving: Worker[] = [];
  private readonly routers: { member: Member; term: number; epoch: number }[];
  private count = 0;

  constructor(
    readonly scene: Scene,
    /** Workers that join before experts are placed hold some of them, from a coordinator before this one. */
    private readonly restarted: boolean,
  ) {
    this.routers = ['r0', 'r1'].map((name) => ({ member: scene.router(name), term: 0, epoch: 0 }));
  }

  happen(event: Event): void {
    const { scene, live } = this;
    const one = live.length > 0 && 'at' in event ? event.at % live.length : -1;
    switch (event.kind) {
      case 'join':
        if (live.length < 6) this.join(`w${this.count++}`, event);
        break;
      case 'kill':
        if (live.length < 2) return;
        for (const { member, name, room } of live.splice(one, 1)) {
          scene.cluster.end(member, 'killed', scene.nowMs);
          scene.settle(null);
          if (event.again) this.join(name, { room, host: member.hello.host, held: 0, mark: null });
        }
        break;
      case 'leave':
        if (live.length < 2) return;
        for (const worker of live.splice(one, 1)) {
          scene.cluster.leave(worker.member, 'SIGTERM');
          scene.settle(null);
          this.leaving.push(worker);
        }
        break;
      case 'mark':
        if (one >= 0) this.mark(live[one]!.name, event.mark);
        break;
      case 'pass':
        for (const keepsUp of event.keepsUp) this.pass(keepsUp);
    }
  }

  /** Whoever leaves is gone, and routers keep up. */
  calm(): void {
    for (const { member } of this.leaving) {
      for (let second = 0; second < 5; second += 1) this.pass(true);
      this.scene.cluster.end(member, 'left', this.scene.nowMs);
      this.scene.settle(null);
    }
    for (let second = 0; second < 90; second += 1) this.pass(true);
  }

  private join(
    name: string,
    { room, host, held, mark }: Pick<Extract<Event, { kind: 'join' }>, 'room' | 'host' | 'held' | 'mark'>,
  ) {
    const { scene, live, restarted } = this;
    const isFromBefore = restarted && !scene.cluster.plans.started;
    const experts = isFromBefore ? allExperts.slice(held).slice(0, room) : [];
    const memoryBytes = room * expertBytes;
    const term = restarted && live.length === 0 ? 1 : 0;
    const member = scene.worker(name, { memoryBytes, host, held: groupByLayer(experts), term });
    live.push({ name, room, member });
    if (isFromBefore) this.mark(name, mark);
  }

  private mark(name: string, mark: Mark | null): void {
    this.scene.cluster.mark(name, mark, this.scene.nowMs);
    this.scene.settle(null);
  }

  private pass(keepsUp: boolean): void {
    const { scene, routers } = this;
    for (const router of routers) {
      if (keepsUp && scene.cluster.epoch > 0)
        Object.assign(router, { term: scene.cluster.term, epoch: scene.cluster.epoch });
      scene.uses(router.member, router.term, router.epoch);
    }
    scene.pass(1_000);
  }
}

test('whatever workers and operators do, every expert that there is room for is served in the end, and no worker that is drained keeps what others have room for', () => {
  fc.assert(
    fc.property(
      settings,
      fc.boolean(),
      fc.array(join, { minLength: 2, maxLength: 4 }),
      fc.array(event, { minLength: 2, maxLength: 10 }),
      (placement, restarted, joins, events) => {
        const upheaval = new Upheaval(new Scene(placement), restarted);
        for (const one of [...joins, ...events]) upheaval.happen(one);
        upheaval.calm();
        const { scene, live } = upheaval;
        const { plans, view } = scene.cluster;
        if (!plans.started) return;
        const told = (name: string) => scene.told.get(name)?.length ?? 0;
        for (const { name, room } of live) expect(told(name)).toBeLessThanOrEqual(room);
        const marked = (mark: Mark | undefined) => live.filter(({ name }) => plans.marks.get(name) === mark);
        const roomOf = (workers: Worker[]) => workers.reduce((sum, { room }) => sum + room, 0);
        // What cordoned workers hold counts, what they could hold does not.
        const slots = new Set(marked('CORDONED').map(({ name }) => plans.placement.slotOf(name)));
        const onCordoned = plans.placement.published.filter((holders) =>
          holders.some((slot) => slots.has(slot)),
        ).length;
        const [open, drained] = [roomOf(marked(undefined)), marked('DRAINED')];
        if (total - onCordoned <= open + roomOf(drained)) expect(view.reason).toBe('');
        if (open >= total) expect(drained.map(({ name }) => told(name))).toEqual(drained.map(() => 0));
      },
    ),
    { numRuns: Number(process.env.UPHEAVALS ?? 300) },
  );
});

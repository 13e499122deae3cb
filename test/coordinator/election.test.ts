import { describe, expect, test } from '@jest/globals';
import { createLogger } from '../../services/common/log.js';
import { Election } from '../../services/coordinator/election.js';
import type { SimulatedProcess } from '../../services/simulator/process.js';
import { SeededRandom } from '../../services/simulator/random.js';
import { drawClock } from '../../services/simulator/rates.js';
import { VirtualTime } from '../../services/simulator/virtual-time.js';
import { simulatedProcess } from '../support/simulated.js';
import { RecordedLease } from './lease-support.js';

const leaseMs = 5_000;
const log = createLogger('test', 'test', 'silent');

interface Candidate {
  process: SimulatedProcess;
  election: Election;
  /** The terms in which it began to lead. */
  terms: number[];
  /** Called back that it leads, and not that it does not any more. */
  told: boolean;
  /** What nodes made it raise its term to. */
  raisedTo: number;
}

/** Coordinators that stand for election, in virtual time, each with a clock of its own. */
class Scene {
  readonly time = new VirtualTime();
  readonly random: SeededRandom;
  readonly lease: RecordedLease;
  readonly candidates: Candidate[] = [];

  constructor(seed: number) {
    this.random = new SeededRandom(seed);
    this.lease = new RecordedLease(this.time, this.random);
  }

  start(name: string): Candidate {
    const skew = drawClock(this.random);
    const process = simulatedProcess(name, { time: this.time, random: this.random.fork(), skew });
    const candidate: Candidate = { process, terms: [], told: false, raisedTo: 0, election: null! };
    candidate.election = new Election(`${name}:7070`, {
      lease: this.lease.of(process),
      holder: name,
      leaseMs,
      clock: process.runtime.clock,
      log,
      term: () => Math.max(candidate.terms.at(-1) ?? 0, candidate.raisedTo),
      onLead: (term) => {
        candidate.terms.push(term);
        candidate.told = true;
      },
      onLost: () => {
        candidate.told = false;
      },
    });
    this.candidates.push(candidate);
    return candidate;
  }

  leaders(): Candidate[] {
    return this.candidates.filter(({ process, election }) => process.state === 'running' && election.leads);
  }

  /** Runs until somebody leads; fails after `limitMs`. */
  async untilLed(limitMs: number): Promise<Candidate> {
    const led = await this.time.run(this.time.nowMs + limitMs, () => this.leaders().length > 0);
    expect(led).toBe(true);
    return this.leaders()[0]!;
  }

  run(ms: number): Promise<boolean> {
    return this.time.run(this.time.nowMs + ms, () => false);
  }
}

describe('election', () => {
  test('one of two leads, the other knows where, and follows a second after the first gave up', async () => {
    const scene = new Scene(1);
    const [a, b] = [scene.start('a'), scene.start('b')];
    await scene.run(20_000);
    const [leader, other] = a.election.leads ? [a, b] : [b, a];
    expect(leader.terms).toEqual([1]);
    expect(other.terms).toEqual([]);
    expect(other.election.leader).toBe(`${leader.process.name}:7070`);
    const stopped = leader.election.stop();
    await scene.run(1_100);
    await stopped;
    expect(leader.election.leads).toBe(false);
    expect(other.terms).toEqual([2]);
    expect(leader.told).toBe(false);
  });

  test('a dead leader is followed within its lease and two looks', async () => {
    const scene = new Scene(2);
    const dead = scene.start('a');
    await scene.untilLed(1);
    const next = scene.start('b');
    await scene.run(30_000);
    dead.process.kill();
    await scene.run(leaseMs * 0.79);
    expect(scene.leaders()).toEqual([]);
    expect(await scene.untilLed(leaseMs * 0.7)).toBe(next);
    expect(next.terms).toEqual([2]);
  });

  test('who stood still for less than the lease goes on; for longer, it hears that another leads', async () => {
    const scene = new Scene(3);
    const a = scene.start('a');
    await scene.untilLed(1);
    const b = scene.start('b');
    await scene.run(10_000);
    a.process.stop();
    await scene.run(2_800);
    a.process.resume();
    await scene.run(10_000);
    expect([a.terms, b.terms]).toEqual([[1], []]);
    a.process.stop();
    await scene.run(20_000);
    expect(b.election.leads).toBe(true);
    a.process.resume();
    expect(a.election.leads).toBe(false);
    await scene.run(2_000);
    expect(a.told).toBe(false);
    expect(a.election.leader).toBe('b:7070');
    expect([a.terms, b.terms]).toEqual([[1], [2]]);
  });

  test('without the lease nobody leads, and the same coordinator goes on in a higher term', async () => {
    const scene = new Scene(4);
    const a = scene.start('a');
    await scene.untilLed(1);
    scene.lease.loss = 1;
    await scene.run(1.1 * leaseMs);
    expect([a.election.leads, a.told, a.election.inTouch]).toEqual([false, false, false]);
    expect(a.election.leader).toBe('');
    scene.lease.loss = 0;
    await scene.run(2_000);
    expect(a.terms).toEqual([1, 2]);
    expect(a.election.inTouch).toBe(true);
  });

  test('a term that nodes have raised is written down', async () => {
    const scene = new Scene(5);
    const a = scene.start('a');
    await scene.untilLed(1);
    a.raisedTo = 17;
    await scene.run(2_000);
    a.process.kill();
    scene.start('b');
    await scene.run(8_000);
    expect(scene.candidates[1]!.terms).toEqual([18]);
  });

  test('whatever is late, lost, stands still and dies: never two at once, every term higher than all before', async () => {
    let changes = 0;
    for (let seed = 100; seed < 160; seed += 1) {
      const scene = new Scene(seed);
      const { random, lease } = scene;
      for (const name of ['a', 'b', 'c']) scene.start(name);
      for (let step = 0; step < 40; step += 1) {
        lease.delayMsMax = random.unit() < 0.5 ? 20 : 2_500;
        lease.loss = random.unit() < 0.5 ? 0 : random.unit();
        const { process } = scene.candidates[Math.floor(random.unit() * scene.candidates.length)]!;
        const chance = random.unit();
        if (chance < 0.3) process.stop();
        else if (chance < 0.6) process.resume();
        else if (chance < 0.65 && process.state !== 'dead') {
          process.kill();
          scene.start(`${process.name}+`);
        }
        const untilMs = scene.time.nowMs + random.unit() * 12_000;
        const two = await scene.time.run(untilMs, () => scene.leaders().length > 1);
        expect({ seed, two }).toEqual({ seed, two: false });
      }
      lease.loss = 0;
      lease.delayMsMax = 20;
      for (const { process } of scene.candidates) process.resume();
      await scene.run(3 * leaseMs);
      expect({ seed, leaders: scene.leaders().length }).toEqual({ seed, leaders: 1 });
      const terms = scene.candidates.flatMap((candidate) => candidate.terms);
      expect(new Set(terms).size).toBe(terms.length);
      const told = lease.record.written.map(({ term }) => term);
      expect(told).toEqual([...told].sort((x, y) => x - y));
      changes += terms.length;
    }
    // Otherwise nothing was put to the test.
    expect(changes).toBeGreaterThan(300);
  });
});

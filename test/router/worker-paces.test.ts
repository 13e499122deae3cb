import { describe, expect, test } from '@jest/globals';
import { type SentBatch, WorkerPaces } from '../../services/router/worker-paces.js';
import { SeededRandom } from '../../services/simulator/random.js';
import { VirtualTime } from '../../services/simulator/virtual-time.js';
import type { Link } from '../../services/transport/link.js';
import { simulatedProcess } from '../support/simulated.js';

/** Token batches at two workers, in virtual time. */
class Scene {
  readonly time = new VirtualTime();
  private readonly clock = simulatedProcess('router', { time: this.time, random: new SeededRandom(1) })
    .runtime.clock;
  readonly paces = new WorkerPaces(this.clock, 10_000);
  readonly links = [0, 1, 2].map((index) => ({ worker: `worker-${index}` }) as Link);
  /** When each batch was given up, by its number. */
  readonly givenUpMs = new Map<number, number>();
  private count = 0;

  /** `movable`: others have what it needs. */
  send(worker: number, movable = true): { number: number; batch: SentBatch } {
    const number = this.count++;
    const late = () => {
      if (movable) this.givenUpMs.set(number, this.time.nowMs);
      return movable;
    };
    const batch = { link: this.links[worker]!, rows: 10, sentMs: this.clock.now(), attempt: 0, late };
    this.paces.sent(batch);
    return { number, batch };
  }

  /** So many answers of a worker, each after so long. */
  async answers(worker: number, count: number, ms: number): Promise<void> {
    for (let answer = 0; answer < count; answer++) {
      const { batch } = this.send(worker);
      await this.pass(ms);
      this.paces.answered(batch, ms / 1000);
    }
  }

  async pass(ms: number): Promise<void> {
    await this.time.run(this.time.nowMs + ms, () => false);
  }
}

describe('a worker that is late with one token batch', () => {
  test('is not waited for with those that were sent to it since, and others are', async () => {
    const scene = new Scene();
    const first = scene.send(0);
    await scene.pass(280);
    const second = scene.send(0);
    const other = scene.send(1);
    await scene.pass(120);
    const { givenUpMs, paces, links } = scene;
    expect(givenUpMs.get(first.number)).toBeLessThanOrEqual(400);
    expect(givenUpMs.get(second.number)).toBe(givenUpMs.get(first.number));
    expect(givenUpMs.has(other.number)).toBe(false);
    expect(links.map((link) => paces.isSuspect(link))).toEqual([true, false, false]);
  });

  test('had three times as long as its rate says, and 0.3 s', async () => {
    const scene = new Scene();
    await scene.answers(0, 20, 100);
    const startMs = scene.time.nowMs;
    const last = scene.send(0);
    await scene.pass(1_000);
    expect(scene.givenUpMs.get(last.number)! - startMs).toBeGreaterThan(600);
    expect(scene.givenUpMs.get(last.number)! - startMs).toBeLessThanOrEqual(660);
  });

  test('is taken to be as fast as the others until it has answered often: what has just started is slow', async () => {
    const scene = new Scene();
    for (const worker of [1, 2]) await scene.answers(worker, 20, 100);
    await scene.answers(0, 2, 250);
    const startMs = scene.time.nowMs;
    const [first] = [0, 1, 2].map((worker) => scene.send(worker));
    await scene.pass(700);
    expect(scene.givenUpMs.get(first!.number)! - startMs).toBeLessThanOrEqual(660);
  });

  test('is waited for where nobody else has what is needed, and is late no more once it answers', async () => {
    const scene = new Scene();
    const only = scene.send(0, false);
    await scene.pass(1_000);
    expect(scene.givenUpMs.size).toBe(0);
    scene.paces.answered(only.batch, 0.5);
    expect(scene.paces.isSuspect(scene.links[0]!)).toBe(false);
    scene.send(0);
    await scene.pass(200);
    expect(scene.givenUpMs.size).toBe(0);
  });
});

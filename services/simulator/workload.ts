import { type BatchWish, drawWish } from './batch.js';
import { SimulatedCall } from './client.js';
import type { SimulatedCluster, Slot } from './cluster.js';
import type { RouterNode } from './nodes.js';
import { Attempt } from './outcomes.js';
import type { SeededRandom } from './random.js';

/** What ends a wish for good: it need not be tried again. */
const finalEnds = new Set<string>(['complete', 'DEADLINE_EXCEEDED', 'CANCELLED']);
/** Before the next try. */
const againMs = 200;

/** Clients that send batch after batch to routers of their choice, and each of them again until it is done. */
export class Workload {
  completed = 0;
  ends = new Map<string, number>();
  private readonly open = new Map<BatchWish, Attempt | null>();
  private stopped = false;
  private wishes = 0;

  constructor(
    private readonly cluster: SimulatedCluster,
    private readonly random: SeededRandom,
    private readonly violated: (what: string) => void,
  ) {}

  start(): void {
    for (let client = 0; client < this.cluster.scenario.clients; client += 1) this.think(client);
  }

  /** No new wishes; those that are open are still tried. */
  stop(): void {
    this.stopped = true;
  }

  get openCount(): number {
    return this.open.size;
  }

  /** Those that are not done. */
  describeOpen(): string {
    const described = [...this.open].map(([{ number, deadlineMs }, attempt]) => {
      const where = attempt === null ? 'between two tries' : `at ${attempt.at}`;
      return `batch ${number} (deadline ${deadlineMs} ms) ${where}`;
    });
    return described.join(', ');
  }

  /** One more batch, at a given router, without a deadline. */
  ask(slot: Slot<RouterNode>): void {
    const drawn = drawWish(this.random, this.wishes++, this.cluster.scenario.shape);
    const wish = { ...drawn, deadlineMs: 0, cancelMs: 0 };
    this.open.set(wish, null);
    this.attempt(wish, 'asker', slot);
  }

  private think(client: number): void {
    const { time, scenario } = this.cluster;
    time.after(this.random.exponential(scenario.thinkMs), () => {
      if (this.stopped) return;
      const wish = drawWish(this.random, this.wishes++, scenario.shape);
      this.open.set(wish, null);
      this.attempt(wish, `client-${client}`, this.random.pick(this.cluster.routers));
      this.think(client);
    });
  }

  private attempt(wish: BatchWish, client: string, slot: Slot<RouterNode>): void {
    const { time, log, scenario } = this.cluster;
    const { node } = slot;
    if (node === null) {
      this.again(wish, client);
      return;
    }
    const { process } = node;
    const attempt = new Attempt(wish, node, {
      shape: scenario.shape,
      readyWaitMs: scenario.readyWaitMs,
      memoryRunsOut: scenario.faults.weights.starve > 0,
      nowMs: () => time.nowMs,
      soon: (run) => time.after(0, run),
      violated: this.violated,
      ended: () => {
        forget();
        this.end(wish, client, attempt);
      },
    });
    this.open.set(wish, attempt);
    const forget = process.onDeath(() => attempt.lost());
    log.add(client, `asks ${process.name} for batch ${wish.number}: ${wish.tokens} tokens`);
    const random = this.random.fork();
    const sendMs = random.magnitude(0.01, 50);
    const takeMs = random.magnitude(0.01, 50);
    const manner = { sendMs: () => random.exponential(sendMs), takeMs: () => random.exponential(takeMs) };
    const call = new SimulatedCall(client, wish, scenario.shape, manner, process.runtime, attempt);
    process.deliver(() => node.core.batches.accept(call));
    if (wish.cancelMs > 0)
      time.after(wish.cancelMs, () => {
        attempt.cancelled = true;
        process.deliver(() => call.cancel());
      });
  }

  private end(wish: BatchWish, client: string, { ended, at }: Attempt): void {
    this.cluster.log.add(client, `batch ${wish.number} at ${at} ends: ${ended}`);
    this.ends.set(ended!, (this.ends.get(ended!) ?? 0) + 1);
    this.open.set(wish, null);
    if (ended === 'complete') this.completed += 1;
    if (finalEnds.has(ended!)) this.open.delete(wish);
    else this.again(wish, client);
  }

  private again(wish: BatchWish, client: string): void {
    const { time, routers } = this.cluster;
    time.after(this.random.exponential(againMs), () => this.attempt(wish, client, this.random.pick(routers)));
  }
}

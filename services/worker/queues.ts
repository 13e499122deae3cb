import type { Expert } from '../../native/index.js';
import { LiveSet } from '../common/live.js';
import { ExpertQueue, type ExpertWork, notHere, type Part, type Piece, type Task } from './tasks.js';

/** A call with fewer rows takes less time than to hand it over and back: another expert joins it. */
const callRowsMin = 64;

/** The experts of a worker, and the segments of tasks that wait for them. */
export class ExpertQueues {
  private readonly byLayer = new Map<number, Map<number, ExpertQueue>>();
  /** Tasks with parts that no call has taken, in the order of arrival. */
  private readonly waiting = new LiveSet<Task>();

  constructor(
    private readonly worker: string,
    /** Rows of one expert in one call, at most. */
    private readonly maxRows: number,
    /** Whether rows of a task can be computed now; if not, the task has failed. */
    private readonly start: (task: Task) => boolean,
  ) {}

  /** Takes over the expert: it is released when it was removed and nothing is left for it. */
  add(layer: number, index: number, expert: Expert): void {
    const experts = this.byLayer.get(layer) ?? new Map<number, ExpertQueue>();
    this.byLayer.set(layer, experts);
    experts.set(index, new ExpertQueue(layer, index, expert));
  }

  /** Refuses new rows for an expert; those that are queued are computed. */
  remove(layer: number, index: number): void {
    const queue = this.byLayer.get(layer)?.get(index);
    if (queue === undefined) return;
    this.byLayer.get(layer)!.delete(index);
    queue.retired = true;
    releaseIfDone(queue);
  }

  *all(): Generator<ExpertQueue> {
    for (const experts of this.byLayer.values()) yield* experts.values();
  }

  /** Puts a task's segments into the queues of their experts. Throws EXPERT_NOT_HERE, and queues nothing then. */
  enqueue(task: Task): void {
    const { layer, segments } = task.batch.meta;
    const experts = this.byLayer.get(layer);
    const parts: Part[] = [];
    let offset = 0;
    for (let i = 0; i < segments.length; i += 2) {
      const [index, count] = [segments[i]!, segments[i + 1]!];
      const queue = experts?.get(index);
      if (queue === undefined) throw notHere(this.worker, layer, index);
      parts.push({ task, queue, offset, count });
      offset += count;
    }
    for (const part of parts) {
      part.queue.parts.add(part);
      part.queue.rows += part.count;
      task.waiting.add(part);
    }
    this.waiting.add(task);
  }

  /** Takes what is queued of a task out again. */
  withdraw(task: Task): void {
    for (const part of task.waiting) {
      part.queue.rows -= part.count;
      this.drop(part);
      releaseIfDone(part.queue);
    }
  }

  /** Rows of experts that the oldest waiting task needs; null: none waits. */
  nextCall(): ExpertWork[] | null {
    for (let task = this.waiting.first; task !== undefined; task = this.waiting.first) {
      // One that has failed waits no longer.
      if (!this.start(task)) continue;
      const call: ExpertWork[] = [];
      let rows = 0;
      for (const { queue } of task.waiting) {
        const pieces = this.take(queue);
        for (const { count } of pieces) rows += count;
        call.push({ queue, pieces });
        if (rows >= callRowsMin) break;
      }
      return call;
    }
    return null;
  }

  /** The queue's oldest rows, up to maxRows. */
  private take(queue: ExpertQueue): Piece[] {
    const pieces: Piece[] = [];
    let room = this.maxRows;
    for (let part = queue.parts.first; part !== undefined && room > 0; part = queue.parts.first) {
      const { task } = part;
      if (!this.start(task)) continue;
      const count = Math.min(part.count, room);
      pieces.push({ task, offset: part.offset, count });
      room -= count;
      queue.rows -= count;
      part.offset += count;
      part.count -= count;
      if (part.count === 0) this.drop(part);
    }
    return pieces;
  }

  private drop(part: Part): void {
    part.queue.parts.delete(part);
    part.task.waiting.delete(part);
    if (part.task.waiting.size === 0) this.waiting.delete(part.task);
  }
}

/** Gives an expert up that was removed, once nothing is left for it. */
export function releaseIfDone(queue: ExpertQueue): void {
  if (queue.retired && queue.parts.size === 0 && queue.calls === 0) queue.expert.release();
}

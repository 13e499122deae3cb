import type { ErrorCode, SwitchyardError } from '../common/errors.js';
import type { ForwardSummaryInput } from '../common/generated/switchyard/v1/ForwardSummary.js';
import { type BatchWish, expectedToken, type ModelShape } from './batch.js';
import type { BatchListener } from './client.js';
import type { RouterNode } from './nodes.js';

/** How far a clock may be from true time, and then some. */
const clockSlack = 0.02;
/** On top of a deadline: what ends a batch must travel and run. */
const lateMsMax = 5_000;

export interface OutcomeBounds {
  shape: ModelShape;
  readyWaitMs: number;
  /** Slabs are full now and then. */
  memoryRunsOut: boolean;
  nowMs: () => number;
  /** Runs when what happens now is over. */
  soon: (run: () => void) => void;
  /** Called with what must never happen. */
  violated: (what: string) => void;
  /** Called once, when the attempt has ended. */
  ended: () => void;
}

/**
 * One attempt of a batch at one router, as its client sees it: every token must be answered once with the rows of the fault-free run, and
 * the batch must end once, well or with an error that it may end with.
 */
export class Attempt implements BatchListener {
  ended: 'complete' | ErrorCode | null = null;
  /** The client has given it up. */
  cancelled = false;
  private readonly startedMs: number;
  private readonly answeredTokens: Uint8Array;
  private tokens = 0;

  constructor(
    readonly wish: BatchWish,
    private readonly router: RouterNode,
    private readonly bounds: OutcomeBounds,
  ) {
    this.startedMs = bounds.nowMs();
    this.answeredTokens = new Uint8Array(wish.tokens);
  }

  answered(first: number, rows: Uint32Array, routing: { experts: Uint32Array; weights: Float32Array }): void {
    const { wish, bounds } = this;
    const perToken = (wish.lastLayer - wish.firstLayer + 1) * bounds.shape.topK;
    if (this.ended !== null) this.violated(`tokens from ${first} on were answered after the end`);
    for (let i = 0; i < rows.length / 2; i += 1) {
      const token = first + i;
      if (token >= wish.tokens || this.answeredTokens[token] === 1)
        this.violated(`token ${token} of ${wish.tokens} was answered twice, or does not exist`);
      this.answeredTokens[token] = 1;
      this.tokens += 1;
      const at = i * perToken;
      const answered = {
        experts: [...routing.experts.subarray(at, at + perToken)],
        weights: [...routing.weights.subarray(at, at + perToken)],
      };
      const { row, routing: expected } = expectedToken(wish, token, bounds.shape, answered);
      if (row.a !== rows[2 * i] || row.b !== rows[2 * i + 1])
        this.violated(`token ${token} has another row than the fault-free run`);
      if (
        String(answered.experts) !== String(expected.experts) ||
        String(answered.weights) !== String(expected.weights)
      )
        this.violated(`token ${token} has another routing than the fault-free run`);
    }
  }

  completed({ tokens }: ForwardSummaryInput): void {
    this.end('complete');
    if (this.tokens !== this.wish.tokens || Number(tokens) !== this.wish.tokens)
      this.violated(
        `${this.tokens} of ${this.wish.tokens} tokens were answered, and the summary says ${tokens}`,
      );
  }

  failed({ code, message }: SwitchyardError): void {
    this.end(code);
    if (this.mayFail(code)) return;
    const text = `failed with ${code} after ${Math.round(this.elapsedMs)} ms: ${message}`;
    // A router that can be none any more refuses batches, and ends.
    this.bounds.soon(() => {
      if (code !== 'NOT_READY' || !this.router.over) this.violated(text);
    });
  }

  /** The router died: whatever it was about to say is lost. */
  lost(): void {
    if (this.ended !== null) return;
    this.ended = 'ROUTER_LOST';
    this.bounds.ended();
  }

  /** The process that runs it. */
  get at(): string {
    return this.router.process.name;
  }

  /** Of the router's own time: while it stands still it can end nothing. */
  private get elapsedMs(): number {
    return this.bounds.nowMs() - this.startedMs - this.router.process.stoodMs(this.startedMs);
  }

  private mayFail(code: ErrorCode): boolean {
    const { deadlineMs } = this.wish;
    const { readyWaitMs } = this.bounds;
    const passed = (ms: number) => this.bounds.nowMs() - this.startedMs >= ms * (1 - clockSlack);
    switch (code) {
      case 'DEADLINE_EXCEEDED':
        return deadlineMs > 0 && passed(deadlineMs) && this.elapsedMs <= deadlineMs + lateMsMax;
      case 'NOT_READY':
      case 'WORKER_LOST':
        return passed(readyWaitMs);
      case 'DRAINING':
        return this.router.draining;
      case 'CANCELLED':
        return this.cancelled;
      case 'RESOURCE_EXHAUSTED':
        return this.bounds.memoryRunsOut;
      default:
        return false;
    }
  }

  private end(how: 'complete' | ErrorCode): void {
    if (this.ended === 'ROUTER_LOST') return;
    if (this.ended !== null) this.violated(`ended twice: ${this.ended}, then ${how}`);
    this.ended = how;
    this.bounds.ended();
  }

  private violated(what: string): void {
    this.bounds.violated(`batch ${this.wish.number} at ${this.at}: ${what}`);
  }
}

import { LiveSet } from '../../common/live.js';
import { nowMicroseconds } from '../../common/trace.js';
import type { RowOperations } from '../../runtime/rows.js';
import type { MessagePort, Outgoing } from '../port.js';

/** What the writer needs of a stream: a Duplex, or a gRPC stream of either side. */
interface MessageStream<Message> {
  /** `taken`: the message is copied, or will never be sent. */
  write(message: Message, taken: () => void): boolean;
}

/**
 * Sends messages one after another; the next is built when the stream has taken the one before, so that a peer
 * that does not read holds up this queue and nothing is copied ahead of the wire.
 */
export class MessageWriter<Message> implements MessagePort<Message> {
  readonly gathers = false;
  private readonly queue = new LiveSet<Outgoing<Message>>();
  private inFlight: Outgoing<Message> | null = null;
  /** Of the rows in flight. */
  private view: Uint8Array | null = null;
  private destroyed = false;

  constructor(
    private readonly stream: MessageStream<Message>,
    private readonly rows: Pick<RowOperations, 'endView'>,
    /** Called when nothing is left to send. */
    private readonly onIdle: () => void = () => {},
  ) {}

  /** Messages that were given to `send` and are not done. */
  get queued(): number {
    return this.queue.size + (this.inFlight ? 1 : 0);
  }

  send(outgoing: Outgoing<Message>): void {
    if (this.destroyed) {
      outgoing.done();
      return;
    }
    this.queue.add(outgoing);
    this.pump();
  }

  /** Takes a message back; false if it is on its way already. */
  withdraw(outgoing: Outgoing<Message>): boolean {
    if (!this.queue.delete(outgoing)) return false;
    outgoing.done();
    return true;
  }

  /** Sends nothing more. */
  destroy(): void {
    this.destroyed = true;
    const queued = this.queue.values();
    this.queue.clear();
    for (const outgoing of queued) outgoing.done();
    this.inFlight?.done();
    this.inFlight = null;
    this.view = null;
  }

  private pump(): void {
    const next = this.queue.first;
    if (this.inFlight || !next) return;
    this.queue.delete(next);
    this.inFlight = next;
    const { rows } = next;
    this.view = rows?.slab.view() ?? null;
    const message = next.make(this.view?.subarray(0, rows?.bytes));
    this.stream.write(message, () => this.written(next));
  }

  /** The stream has a copy of the message: its rows need not wait for the garbage collector. */
  private written(outgoing: Outgoing<Message>): void {
    if (this.inFlight !== outgoing) return;
    this.inFlight = null;
    outgoing.done();
    if (this.view !== null) this.rows.endView(this.view);
    this.view = null;
    outgoing.sent?.(nowMicroseconds());
    this.pump();
    if (this.queued === 0) this.onIdle();
  }
}

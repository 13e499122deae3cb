import { randomBytes } from 'node:crypto';
import { Duplex } from 'node:stream';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import { native } from '../../native/index.js';
import { SwitchyardError } from '../../services/common/errors.js';
import type { ChunkInput } from '../../services/common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeaderInput } from '../../services/common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardRequestInput } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import type { ForwardResponse } from '../../services/common/generated/switchyard/v1/ForwardResponse.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { ChunkChannel } from '../../services/transport/chunk-channel.js';
import { chunkCost } from '../../services/transport/chunk-size.js';

export type GrpcCall = ClientDuplexStream<ForwardRequestInput, ForwardResponse>;

const over = new SwitchyardError('CANCELLED', 'the call is over');

/**
 * A Forward call that sends and gets its chunks over UCX, with the face of a gRPC call: the same messages go in and come
 * out, right or wrong. Headers, half-close, summary and errors pass through.
 */
export class UcxCall extends Duplex {
  readonly channel: ChunkChannel;
  readonly key = randomBytes(16);
  private readonly ended = new AbortController();
  /** The header is sent, and answered if the call goes on. */
  private started = false;
  /** Chunks travel over UCX; a router without room for a channel takes them on the call. */
  private open = false;
  /** Something was sent without credit. */
  private unpaid = false;
  private callEnded = false;
  private failed = false;
  private pumping = false;
  private woken = new Deferred<void>();

  constructor(
    readonly call: GrpcCall,
    windowBytes = 4 * 1024 * 1024,
  ) {
    super({ objectMode: true, highWaterMark: 1, autoDestroy: false });
    if (native.ucx === null) throw new Error('built without UCX');
    this.channel = new ChunkChannel(native.ucx.fabric('machine'), {
      key: this.key,
      windowBytes,
      onChange: () => this.wake(),
    });
    call.on('readable', () => this.wake());
    call.on('end', () => {
      this.callEnded = true;
      this.wake();
    });
    call.on('error', (error) => {
      this.failed = true;
      this.finish();
      // As over gRPC, who does not read learns of it when it reads again.
      const unread = this.isPaused() && this.listenerCount('readable') === 0;
      if (unread) this.once('resume', () => this.destroy(error));
      else this.destroy(error);
    });
    call.on('status', () => this.finish());
  }

  cancel(): void {
    this.call.cancel();
  }

  override _write(message: ForwardRequestInput, _: string, done: (error?: Error | null) => void): void {
    this.forward(message).then(
      () => done(),
      () => done(),
    );
  }

  override _final(done: () => void): void {
    void this.taken().then(() => {
      this.call.end();
      done();
    });
  }

  override _read(): void {
    if (!this.pumping) void this.pump();
  }

  private async forward(message: ForwardRequestInput): Promise<void> {
    if (this.ended.signal.aborted) return;
    if (message.header && !this.started) await this.start(message.header);
    else if (message.chunk && this.open) await this.sendChunk(message.chunk);
    else this.call.write(message);
  }

  private async start(header: ForwardHeaderInput): Promise<void> {
    this.call.write({ header: { ...header, ucx: this.channel.end, ucxKey: this.key } });
    let first: ForwardResponse | null = null;
    while (first === null && !this.ended.signal.aborted) {
      first = this.call.read() as ForwardResponse | null;
      if (first === null) await this.woken.promise;
    }
    this.started = true;
    if (first?.welcome?.ucx) {
      await this.channel.connect(first.welcome.ucx);
      this.channel.grant();
      await this.channel.opened;
      this.open = true;
    } else this.channel.close(over);
    this._read();
  }

  private async sendChunk({ rows, ...chunk }: ChunkInput): Promise<void> {
    const bytes = (rows ?? new Uint8Array(0)) as Uint8Array;
    const routingBytes = (chunk.experts?.length ?? 0) + (chunk.weights?.length ?? 0);
    const cost = chunkCost(bytes.byteLength, routingBytes);
    // What no credit can ever allow is sent all the same.
    if (cost <= this.channel.peerWindowBytes) await this.channel.reserve(cost, this.ended.signal);
    else this.unpaid = true;
    const slab = native.allocateSlab(Math.max(1, bytes.byteLength), routingBytes + 64);
    slab.view().set(bytes);
    this.channel.send(chunk, { slab, bytes: bytes.byteLength });
    slab.release();
  }

  /** Everything sent was taken by the router, or the call is over, as it must be for what no credit allows. */
  private async taken(): Promise<void> {
    const waiting = () => this.unpaid || this.channel.outstandingBytes > 0;
    while (waiting() && !this.ended.signal.aborted) await this.woken.promise;
  }

  private async pump(): Promise<void> {
    this.pumping = true;
    while (this.started || this.ended.signal.aborted) {
      const arrived = this.channel.take();
      const message = arrived
        ? { chunk: { ...arrived.chunk, rows: await this.channel.copyOut(arrived) } }
        : this.call.read();
      if (message !== null && !this.push(message)) break;
      if (message !== null) continue;
      if (this.callEnded) {
        if (!this.failed) this.push(null);
        break;
      }
      await this.woken.promise;
    }
    this.pumping = false;
  }

  private finish(): void {
    this.ended.abort(over);
    this.channel.close(over);
    this.wake();
    this._read();
  }

  private wake(): void {
    this.woken.resolve();
    this.woken = new Deferred();
  }
}

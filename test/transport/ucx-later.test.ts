import { expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { SwitchyardError } from '../../services/common/errors.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import type { LinkOptions } from '../../services/transport/dial.js';
import type { Link, TokenBatch, TokenBatchResult } from '../../services/transport/link.js';
import { nativeUcx, type UcxPort } from '../../services/transport/ucx/port.js';
import type { UcxSource } from '../../services/transport/ucx/source.js';
import { standStill } from '../support/stand-still.js';
import { until } from '../support/until.js';
import { dialProcess, forkWorker, hidden, large } from './processes.js';
import { batchOf, bytesOf, dial, never, startWorker } from './support.js';

const onUcx = native.ucx === null ? test.skip : test;
const auto = { transport: 'auto' } as const;

const rowBytes = hidden * 2;

type AnyPort = UcxPort<unknown, unknown>;

/** UCX whose ports are changed by `change`, which gets them in the order in which they are made, counted from 0. */
function changedUcx(change: (port: AnyPort, index: number) => void): UcxSource {
  const ucx = nativeUcx(false);
  let made = 0;
  return {
    ...ucx,
    createPort: (fabric, options) => {
      const port = ucx.createPort(fabric, options);
      change(port as AnyPort, made++);
      return port;
    },
  };
}

/** Does something before a port connects. */
function beforeConnect(port: AnyPort, act: () => Promise<void> | void): void {
  const connect = port.connect.bind(port);
  port.connect = async (end) => {
    await act();
    await connect(end);
  };
}

const slow = () => {
  throw new SwitchyardError('LINK_LOST', 'it was slow');
};

/** UCX with which the first channel leads nowhere. */
const slowAtFirst = () =>
  changedUcx((port, index) => {
    if (index === 0) beforeConnect(port, slow);
  });

/** A clock that knows what will be done by it. */
function clockWithTimers() {
  const timers = new Set<number>();
  const after: typeof nativeRuntime.clock.after = (ms, run) => {
    const id = timers.size + Math.random();
    timers.add(id);
    const timer = nativeRuntime.clock.after(ms, () => {
      timers.delete(id);
      run();
    });
    return {
      cancel: () => {
        timers.delete(id);
        timer.cancel();
      },
      unref: () => timer.unref(),
    };
  };
  return { timers, runtime: { ...nativeRuntime, clock: { ...nativeRuntime.clock, after } } };
}

/** What a worker returns of `large()`. */
function echoOfLarge(): Buffer {
  const { rows, selected } = large();
  const whole = bytesOf(rows);
  rows.release();
  return Buffer.concat([...selected!].map((row) => whole.subarray(row * rowBytes, (row + 1) * rowBytes)));
}

/** Exchanges one after the other until the link has moved, and some more; every answer is as it should be. */
async function exchangeUntilMoved(link: Link, expected: Buffer): Promise<void> {
  for (let since = 0; since < 5; ) {
    const { rows } = await link.exchange(large(), never);
    expect(bytesOf(rows).subarray(0, expected.length).equals(expected)).toBe(true);
    rows.release();
    if (link.transport === 'ucx') since += 1;
  }
}

onUcx(
  'a link whose worker stood still as UCX was tried goes on over gRPC, and moves to UCX in the midst of its exchanges',
  async () => {
    const { worker, address } = await forkWorker();
    const said: Record<string, unknown>[] = [];
    const log = {
      info: () => {},
      warn: (line: Record<string, unknown>) => {
        said.push(line);
        worker.kill('SIGCONT');
      },
    };
    let moved = 0;
    const link = await dialProcess(address, {
      ...auto,
      ucx: changedUcx((port, index) => {
        if (index === 0) beforeConnect(port, () => standStill(worker));
      }),
      log: log as never,
      onMoved: () => {
        moved += 1;
      },
    });
    const reason = `no way over UCX: no welcome from ${address} within 5000 ms`;
    expect(link).toMatchObject({ transport: 'grpc', lanes: 'http2', reason });
    const expected = echoOfLarge();
    await Promise.all(Array.from({ length: 8 }, () => exchangeUntilMoved(link, expected)));
    expect(link).toMatchObject({ transport: 'ucx', reason: 'both ends have UCX' });
    expect(link.lanes).toMatch(/^\w+( \w+)*$/);
    expect(link.stats).toMatchObject({ bytesOutstanding: 0, answersDiscarded: 0 });
    expect(moved).toBe(1);
    expect(said).toEqual([expect.objectContaining({ event: 'ucx-unreachable', reason })]);
  },
);

/** A worker that keeps what it gets until the test answers. */
function holding() {
  const held: { batch: TokenBatch; answer: Deferred<TokenBatchResult> }[] = [];
  const handler = (batch: TokenBatch) => {
    const answer = new Deferred<TokenBatchResult>();
    held.push({ batch, answer });
    return answer.promise;
  };
  const echo = ({ batch: { meta, rows }, answer }: (typeof held)[number]) =>
    answer.resolve({ rows, rowCount: meta.rowCount, computeSeconds: 0, queueSeconds: 0 });
  return { held, handler, echo };
}

onUcx('what is under way as a link moves is answered, and cancelled, whichever way it went', async () => {
  const { held, handler, echo } = holding();
  const cancelled: string[] = [];
  const onCancel = (batchId: string) => {
    cancelled.push(batchId);
    for (const { batch, answer } of held) {
      if (batch.meta.batchId !== batchId) continue;
      batch.rows.release();
      answer.reject(new SwitchyardError('CANCELLED', 'dropped'));
    }
  };
  const { address } = await startWorker({ handler, onCancel });
  const link = await dial(address, { ...auto, ucx: slowAtFirst() });
  const send = (batchId: string) => link.exchange(batchOf({ batchId }), never);
  const before = ['a', 'b'].map(send);
  await until(() => held.length === 2 && link.transport === 'ucx');
  const after = ['a', 'b'].map(send);
  await until(() => held.length === 4);
  link.cancel('b');
  for (const exchange of [before[1], after[1]])
    await expect(exchange).rejects.toMatchObject({ code: 'CANCELLED' });
  await until(() => held.filter(({ batch }) => batch.rows.released).length === 2);
  expect(new Set(cancelled)).toEqual(new Set(['b']));
  echo(held[2]!);
  (await after[0]!).rows.release();
  echo(held[0]!);
  (await before[0]!).rows.release();
  await until(() => link.stats.bytesOutstanding === 0);
});

onUcx.each<[string, Partial<LinkOptions>, { transport?: 'grpc'; ucx?: UcxSource | null }]>([
  ['the router is told to use gRPC', { transport: 'grpc' }, {}],
  ['the router has no UCX', { ucx: null }, {}],
  ['the worker is told to use gRPC', {}, { transport: 'grpc' }],
  ['the worker has no UCX', {}, { ucx: null }],
  ['one end encrypts alone', { ucx: nativeUcx(true) }, {}],
])('UCX is not tried again where %s', async (_, router, worker) => {
  if (router.ucx && !native.describe().ucx?.encrypts) return;
  const { address } = await startWorker(worker);
  const { timers, runtime } = clockWithTimers();
  const link = await dial(address, { ...auto, ...router, runtime });
  expect(link.transport).toBe('grpc');
  expect(timers.size).toBe(0);
  (await link.exchange(batchOf(), never)).rows.release();
});

const tired = () => {
  throw new SwitchyardError('RESOURCE_EXHAUSTED', 'there is too little of something');
};

onUcx.each<[string, number]>([
  ['once', 1],
  ['twice', 2],
])('a worker that declines UCX %s for want of something is offered it again', async (_, times) => {
  const ucx = changedUcx((_, index) => {
    if (index < times) tired();
  });
  const { address } = await startWorker({ ucx });
  const link = await dial(address, auto);
  const reason = 'worker w does not reach the other end by UCX: there is too little of something';
  expect(link).toMatchObject({ transport: 'grpc', reason });
  await until(() => link.transport === 'ucx');
  (await link.exchange(batchOf(), never)).rows.release();
});

onUcx('a router that could not open a channel offers one later', async () => {
  const ucx = changedUcx((_, index) => {
    if (index === 0) tired();
  });
  const { address } = await startWorker();
  const link = await dial(address, { ...auto, ucx });
  expect(link).toMatchObject({
    transport: 'grpc',
    reason: 'no way over UCX: there is too little of something',
  });
  await until(() => link.transport === 'ucx');
  (await link.exchange(batchOf(), never)).rows.release();
});

onUcx('a link ends while it waits to offer UCX again, and while it does', async () => {
  const { address } = await startWorker();
  const { timers, runtime } = clockWithTimers();
  const waiting = await dial(address, { ...auto, ucx: slowAtFirst(), runtime });
  expect(timers.size).toBe(1);
  waiting.close();
  expect(timers.size).toBe(0);
  const asked = new Deferred<void>();
  const ucx = changedUcx((port, index) => {
    if (index === 0) beforeConnect(port, slow);
    // It never connects.
    else
      beforeConnect(port, () => {
        asked.resolve();
        return new Promise(() => {});
      });
  });
  const offering = await dial(address, { ...auto, ucx, runtime });
  await asked.promise;
  offering.close();
  await offering.closed;
  await until(() => timers.size === 0);
});

/** A worker whose channel number `index` it takes for lost when told to. */
function losing(index: number) {
  const lost = new Deferred<void>();
  lost.promise.catch(() => {});
  const ucx = changedUcx((port, made) => {
    if (made !== index) return;
    const receive = port.receive.bind(port);
    port.receive = (...args) => Promise.race([receive(...args), lost.promise]);
  });
  return { ucx, lose: () => lost.reject(new SwitchyardError('LINK_LOST', 'the UCX peer is gone')) };
}

onUcx(
  'a channel that the worker loses before a token batch has come there ends no link that is on gRPC',
  async () => {
    const { held, handler, echo } = holding();
    const worker = losing(0);
    const { address } = await startWorker({ handler, ucx: worker.ucx });
    // The router has given up this channel, but for the worker it is open.
    const link = await dial(address, { ...auto, ucx: slowAtFirst() });
    const exchange = link.exchange(batchOf(), never);
    await until(() => held.length === 1);
    worker.lose();
    await until(() => link.transport === 'ucx');
    echo(held[0]!);
    (await exchange).rows.release();
    const next = link.exchange(batchOf(), never);
    await until(() => held.length === 2);
    echo(held[1]!);
    (await next).rows.release();
  },
);

onUcx('a router that has moved to a channel which its worker loses hears of it over gRPC', async () => {
  const worker = losing(0);
  const { address } = await startWorker({ ucx: worker.ucx });
  const link = await dial(address, auto);
  expect(link.transport).toBe('ucx');
  worker.lose();
  expect((await link.closed).message).toBe('no way over UCX: the UCX peer is gone');
});

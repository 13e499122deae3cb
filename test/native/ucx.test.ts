import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { runScript } from './support.js';

/** Two ends of one channel in this process, and slabs with room for metadata. */
const prelude = `
  const key = new Uint8Array(16).fill(1);
  const fabric = native.ucx.fabric('machine');
  const open = () => fabric.openChannel({ key, messageBytesMax: 1 << 24, inboxBytesMax: 1 << 30 });
  async function pair() {
    const [left, right] = [open(), open()];
    await Promise.all([left.connect(fabric.address(), right.id), right.connect(fabric.address(), left.id)]);
    return [left, right];
  }
  const slabOf = (bytes, fill = 0) => {
    const slab = native.allocateSlab(bytes, 64);
    if (fill > 0) slab.view().fill(fill);
    return slab;
  };
  const metadata = Uint8Array.of(1, 2, 3);
  const codeOf = (call) => { try { return call(); } catch (error) { return error.code + ' ' + error.operation; } };
  const codes = (results) => [...new Set(results.map(({ status, reason }) => reason?.code ?? status))].sort().join();
  async function untilNoSlabs() {
    for (let i = 0; i < 500 && native.arenaStats().slabs > 0; i += 1) await new Promise((r) => setTimeout(r, 10));
    return native.arenaStats().slabs;
  }
`;

/** A receive alone keeps no process, so the script stays until its body is through. */
const run = (body: string) =>
  runScript(`${prelude}
    const stays = setInterval(() => {}, 1000);
    (async () => {\n${body}\n})().finally(() => clearInterval(stays));`);
const describeUcx = native.ucx === null ? describe.skip : describe;

describeUcx('a process', () => {
  test('that reads the figures of UCX has not started it', async () => {
    const output = await run(`
      const tasks = () => require('node:fs').readdirSync('/proc/self/task').length;
      native.arenaStats();
      const before = tasks();
      console.log(Object.values(native.ucx.stats()).every((figure) => figure === 0), tasks() - before);
      fabric.address();
      console.log(tasks() > before);
    `);
    expect(output).toBe('true 0\ntrue\n');
  });

  test('ends by itself with channels open and nothing pending', async () => {
    const output = await run(`
      const [left, right] = await pair();
      const slab = slabOf(1 << 20);
      left.send(slab, 1 << 20, metadata);
      console.log((await right.receive()).messages.length);
    `);
    expect(output).toBe('1\n');
  });

  test('ends while nothing but a receive is pending', async () => {
    const output = await run(`
      const [, right] = await pair();
      right.receive().then(() => console.log('received'), (error) => console.log(error.code));
      console.log('waiting');
    `);
    expect(output).toBe('waiting\n');
  });

  test('is told that a channel was closed which it waits for', async () => {
    const output = await run(`
      const [, right] = await pair();
      setTimeout(() => right.close(), 300);
      await right.receive().catch((error) => console.log(error.code, error.operation));
    `);
    expect(output).toBe('CANCELLED receive\n');
  });

  test('may exit while messages are in flight', async () => {
    const output = await run(`
      const [left, right] = await pair();
      right.receive();
      for (let i = 0; i < 64; i += 1) left.send(slabOf(4 << 20), 4 << 20, metadata);
      setTimeout(() => { console.log('leaving'); process.exit(0); }, 3);
    `);
    expect(output).toBe('leaving\n');
  });
});

describeUcx('a channel', () => {
  test('may be closed twice; afterwards every call says so, and the fabric serves others', async () => {
    const output = await run(`
      const [left, right] = await pair();
      const receiving = left.receive().catch((error) => error.code);
      left.close();
      left.close();
      console.log(await receiving);
      const slab = slabOf(10);
      const calls = [left.receive(), left.connect(fabric.address(), 1), left.transports()];
      console.log(codes(await Promise.allSettled(calls)), codeOf(() => left.send(slab, 10, metadata)), left.id > 0);
      slab.release();
      const [another, other] = await pair();
      const rows = slabOf(100, 7);
      another.send(rows, 100, metadata);
      const [[arrived, rowBytes, received]] = (await other.receive()).messages;
      console.log(rowBytes, arrived.view()[99], received.length);
    `);
    expect(output).toBe('CANCELLED\nSLAB_RELEASED SLAB_RELEASED send true\n100 7 3\n');
  });

  test('has one receive at a time', async () => {
    const output = await run(`
      const [left] = await pair();
      const first = left.receive();
      await left.receive().catch((error) => console.log(error.code));
      left.close();
      await first.catch((error) => console.log(error.code));
    `);
    expect(output).toBe('INVALID_ARGUMENT\nCANCELLED\n');
  });

  test('sends slabs that are released while they are in flight', async () => {
    const output = await run(`
      const [left, right] = await pair();
      for (let i = 0; i < 32; i += 1) {
        const slab = slabOf(1 << 20, i + 1);
        left.send(slab, 1 << 20, metadata);
        slab.release();
        slab.release();
      }
      const fills = [];
      while (fills.length < 32) {
        const { messages, sentMicroseconds } = await right.receive();
        if (sentMicroseconds.length > 0) throw new Error('nobody asked for it');
        for (const [slab] of messages) {
          const rows = slab.view();
          fills.push(rows[0] === rows[(1 << 20) - 1] ? rows[0] : -1);
          slab.release();
        }
      }
      console.log(fills.every((fill, i) => fill === i + 1));
    `);
    expect(output).toBe('true\n');
  });

  test('tells in order when messages have left, if asked to', async () => {
    const output = await run(`
      const now = () => Number(process.hrtime.bigint()) / 1000;
      const left = fabric.openChannel({ key, messageBytesMax: 1 << 24, inboxBytesMax: 1 << 30, reportSends: true });
      const right = open();
      await left.connect(fabric.address(), right.id);
      const started = now();
      // Long and short messages end by different ways, and not in their order.
      let told = 0;
      for (let i = 0; i < 32; i += 1) told += left.send(slabOf(1 << 20), i % 2 ? 1 << 20 : 10, metadata) ? 0 : 1;
      const times = [];
      while (times.length < told) times.push(...(await left.receive()).sentMicroseconds);
      const inside = times.every((time) => time >= started && time <= now());
      console.log(times.length === told, inside, (await right.receive()).messages.length > 0);
    `);
    expect(output).toBe('true true true\n');
  });

  test('gives back the memory of every message when the other end closes in flight', async () => {
    const output = await run(`
      const [left, right] = await pair();
      const send = () => {
        const slab = native.allocateSlab(1 << 20, 64);
        left.send(slab, 1 << 20, metadata);
        slab.release();
      };
      for (let i = 0; i < 64; i += 1) send();
      right.close();
      send();
      console.log(await untilNoSlabs());
      left.close();
    `);
    expect(output).toBe('0\n');
  });

  test('refuses what does not fit, and goes on', async () => {
    const output = await run(`
      const [left, right] = await pair();
      const slab = native.allocateSlab(4096, 0);
      const refused = [
        () => left.send(slab, 4097, metadata), () => left.send(slab, 4096, new Uint8Array(1 << 20)),
        () => left.send(slab, 1, new Uint8Array(0)), () => left.send({}, 1, metadata),
        () => left.sendRows(slab, 4096, Uint32Array.of(1), metadata), () => left.sendRows(slab, 0, Uint32Array.of(0), metadata),
      ];
      console.log([...new Set(refused.map(codeOf))].join());
      const peers = [left.connect(new Uint8Array(0), 1), left.connect(fabric.address(), 0)];
      console.log(codes(await Promise.allSettled(peers)));
      left.send(slab, 100, metadata);
      console.log((await right.receive()).messages[0][1]);
    `);
    expect(output).toBe('INVALID_ARGUMENT send,INVALID_ARGUMENT sendRows\nINVALID_ARGUMENT\n100\n');
  });

  test('for clients has an address of its own, which nodes reach like any other', async () => {
    const output = await run(`
      const forClients = native.ucx.fabric('machine', 'clients');
      const address = forClients.address();
      console.log(Buffer.compare(address, fabric.address()) !== 0, Buffer.compare(address, forClients.address()) === 0);
      const [left, right] = [open(), forClients.openChannel({ key, messageBytesMax: 1 << 20, inboxBytesMax: 1 << 20 })];
      await Promise.all([left.connect(address, right.id), right.connect(fabric.address(), left.id)]);
      left.send(slabOf(100), 100, metadata);
      right.send(slabOf(200), 200, metadata);
      console.log((await right.receive()).messages[0][1], (await left.receive()).messages[0][1]);
      try { native.ucx.fabric('machine', 'others'); } catch ({ code, message }) { console.log(code, message); }
    `);
    const refusal = 'INVALID_ARGUMENT peers is others; allowed: nodes, clients';
    expect(output).toBe(`true true\n100 200\n${refusal}\n`);
  });

  test('that cannot send says why when it is asked for what has come', async () => {
    const output = await run(`
      const unconnected = open();
      unconnected.send(slabOf(10), 10, metadata);
      await unconnected.receive().catch(({ code, message }) => console.log(code, message));
    `);
    expect(output).toBe('INTERNAL the UCX channel is not connected\n');
  });

  test('ends when more has arrived than it may hold', async () => {
    const output = await run(`
      const [left, right] = [open(), fabric.openChannel({ key, messageBytesMax: 1 << 20, inboxBytesMax: 1 << 20 })];
      await left.connect(fabric.address(), right.id);
      const slab = native.allocateSlab(1 << 19, 64);
      for (let i = 0; i < 3; i += 1) left.send(slab, 1 << 19, metadata);
      slab.release();
      await new Promise((resolve) => setTimeout(resolve, 100));
      for (const [slab] of (await right.receive()).messages) slab.release();
      await right.receive().catch(({ code }) => console.log(code));
      left.close();
      right.close();
      console.log(await untilNoSlabs());
    `);
    expect(output).toBe('RESOURCE_EXHAUSTED\n0\n');
  });

  test('that is forgotten without a close is closed when it is collected', async () => {
    const output = await run(`
      require('node:v8').setFlagsFromString('--expose-gc');
      const collect = require('node:vm').runInNewContext('gc');
      const kept = open();
      let forgotten = open();
      await kept.connect(fabric.address(), forgotten.id);
      forgotten = null;
      const slab = native.allocateSlab(10, 64);
      for (let i = 0; i < 200 && native.ucx.stats().messagesRefused === 0; i += 1) {
        collect();
        kept.send(slab, 10, metadata);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      console.log(native.ucx.stats().messagesRefused > 0);
    `);
    expect(output).toBe('true\n');
  });
});

/** What a worker thread does that is ended in the middle of it: messages both ways, a receive that waits. */
const busy = `
  ${prelude}
  (async () => {
    const [left, right] = await pair();
    const [idle] = await pair();
    idle.receive().catch(() => {});
    const listen = async (channel, answer) => {
      for (;;) for (const [slab] of (await channel.receive()).messages) { slab.release(); answer(); }
    };
    const send = (channel) => {
      const slab = native.allocateSlab(1 << 20, 64);
      channel.send(slab, 1 << 20, metadata);
      slab.release();
    };
    // What arrives is answered.
    listen(left, () => send(left)).catch(() => {});
    listen(right, () => send(right)).catch(() => {});
    for (let i = 0; i < 8; i += 1) { send(left); send(right); }
    for (let i = 0; i < 20; i += 1) await new Promise((resolve) => setTimeout(resolve, 1));
    parentPort.postMessage('busy');
  })();
`;

describeUcx('a worker thread', () => {
  test('may be ended with channels open and messages in flight, and the main thread goes on', async () => {
    const output = await run(`
      const [left, right] = await pair();
      for (let i = 0; i < 20; i += 1) {
        const worker = startWorker(${JSON.stringify(busy)});
        await new Promise((resolve) => worker.once('message', resolve));
        await worker.terminate();
      }
      const slab = slabOf(1 << 20);
      left.send(slab, 1 << 20, metadata);
      console.log((await right.receive()).messages[0][1]);
    `);
    expect(output).toBe(`${1 << 20}\n`);
  });

  test('may be the only one that uses UCX, which ends with it and starts anew', async () => {
    const output = await run(`
      const tasks = () => require('node:fs').readdirSync('/proc/self/task').length;
      const counts = [];
      for (let i = 0; i < 20; i += 1) {
        const worker = startWorker(${JSON.stringify(busy)});
        await new Promise((resolve) => worker.once('message', resolve));
        await worker.terminate();
        counts.push(tasks());
      }
      console.log(counts.at(-1) <= counts[0]);
    `);
    expect(output).toBe('true\n');
  });
});

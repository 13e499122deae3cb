import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { addonPath } from '../../native/locate.js';
import { runScript } from './support.js';

/** Two ends of a channel that have heard each other, as a program in whose process UCX is a guest has them. */
const useUcx = `
  async function useUcx(native, reach) {
    const fabric = native.ucx.fabric(reach);
    const options = { key: new Uint8Array(16).fill(1), messageBytesMax: 1 << 20, inboxBytesMax: 1 << 20 };
    const ends = [fabric.openChannel(options), fabric.openChannel(options)];
    await Promise.all(ends.map((end, index) => end.connect(fabric.address(), ends[1 - index].id)));
    const slab = native.allocateSlab(100, 64);
    // A receive alone keeps no process.
    const stays = setInterval(() => {}, 1000);
    for (const [index, end] of ends.entries()) {
      end.send(slab, 100, Uint8Array.of(1));
      await ends[1 - index].receive();
    }
    clearInterval(stays);
    return ends[0].transports();
  }`;

interface Ending {
  signal: NodeJS.Signals | null;
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs `body`, to which useUcx and the addon are known, in a process of its own. */
function runGuest(body: string, environment: Record<string, string> = {}, addon = addonPath()): Ending {
  const script = `const native = require(${JSON.stringify(addon)}); ${useUcx}; (async () => { ${body} })();`;
  const { UCX_TLS: _, ...own } = process.env;
  const { signal, status, stdout, stderr } = spawnSync(process.execPath, ['-e', script], {
    encoding: 'utf8',
    env: { ...own, ...environment },
    timeout: 120_000,
    killSignal: 'SIGKILL',
  });
  return { signal, status, stdout, stderr };
}

/** What a child of the process would inherit. */
const inherited = `
  const inherited = () => {
    const shown = require('node:child_process').spawnSync('ls', ['-l', '/proc/self/fd'], { encoding: 'utf8' });
    return (shown.stdout.match(/ [0-9]+ -> .*/g) ?? [])
      .filter((line) => !/^ [012] |\\/proc\\//.test(line)).sort().join();
  };`;

(native.ucx === null ? describe.skip : describe)('UCX as a guest in a process', () => {
  test.each(['SIGHUP', 'SIGTERM', 'SIGINT'])('leaves %s what it is: the end of a plain program', (name) => {
    const { signal } = runGuest(
      `await useUcx(native, 'machine'); process.kill(process.pid, '${name}'); setTimeout(() => {}, 20_000);`,
    );
    expect(signal).toBe(name);
  });

  test('writes its log to standard error', () => {
    const { stdout, stderr } = runGuest(
      "await useUcx(native, 'machine'); console.log(JSON.stringify({ done: true }));",
      { UCX_LOG_LEVEL: 'info' },
    );
    expect(stdout).toBe('{"done":true}\n');
    expect(stderr).toContain('UCX  INFO');
  });

  test('leaves the environment of the program and of its children as it was', () => {
    const { stdout } = runGuest(`
      await useUcx(native, 'machine');
      const { stdout } = require('node:child_process').spawnSync('env', { encoding: 'utf8' });
      console.log([...Object.keys(process.env), ...stdout.split('\\n')].filter((line) => line.startsWith('UCX_')));`);
    expect(stdout).toBe('[]\n');
  });

  test.each([
    ['machine', {}],
    ['network', {}],
    ['network', { UCX_TLS: 'tcp', UCX_NET_DEVICES: 'lo' }],
  ] as const)('opens nothing that children inherit: reach %s, %j', (reach, environment) => {
    const { stdout } = runGuest(
      `${inherited}
      const before = inherited();
      console.log(await useUcx(native, '${reach}'));
      native.ucx.fabric('${reach}', 'clients').address();
      console.log(inherited() === before || inherited());`,
      environment,
    );
    expect(stdout).toMatch(/^\S.*\ntrue\n$/);
  });

  test('lets a program end by itself in the middle of its use', () => {
    for (let turn = 0; turn < 5; turn += 1) {
      expect(runGuest("await useUcx(native, 'machine'); process.exit(7);")).toMatchObject({ status: 7 });
    }
  });

  test('opens no port in a thread whose environment is a copy', async () => {
    const output = await runScript(`
      const { readFileSync, readdirSync, readlinkSync } = require('node:fs');
      const listening = () => {
        const own = readdirSync('/proc/self/fd').flatMap((fd) => {
          try { return [readlinkSync('/proc/self/fd/' + fd)]; } catch { return []; }
        });
        return ['tcp', 'tcp6'].flatMap((table) => readFileSync('/proc/self/net/' + table, 'utf8').split('\\n').slice(1))
          .map((row) => row.trim().split(/\\s+/))
          .filter((row) => row[3] === '0A' && own.includes('socket:[' + row[9] + ']')).length;
      };
      const body = ${JSON.stringify(useUcx)} +
        "; useUcx(native, 'machine').then((lanes) => { parentPort.postMessage(lanes); setInterval(() => {}, 1000); })";
      const worker = startWorker(body);
      worker.on('message', async (lanes) => {
        console.log(lanes.includes('tcp'), listening());
        await worker.terminate();
      });`);
    expect(output).toBe('false 0\n');
  });

  test('uses nothing that it has freed when an environment ends', () => {
    const { status, signal, stdout } = runGuest(
      "console.log(await useUcx(native, 'machine') !== '');",
      // What is freed is filled with other bytes, and nothing is kept for the next one who asks.
      { MALLOC_PERTURB_: '165', GLIBC_TUNABLES: 'glibc.malloc.tcache_count=0' },
    );
    expect({ status, signal, stdout }).toEqual({ status: 0, signal: null, stdout: 'true\n' });
  });

  test('does not keep a program that ends for a channel whose peer stands still', () => {
    const open =
      "native.ucx.fabric('machine').openChannel({ key: new Uint8Array(16), messageBytesMax: 1 << 20, inboxBytesMax: 1 << 20 })";
    const place = "[[...native.ucx.fabric('machine').address()], end.id]";
    const connect = '([address, id]) => end.connect(Uint8Array.from(address), id)';
    const peer = `const native = require(${JSON.stringify(addonPath())}); const end = ${open};
      process.on('message', (place) => (${connect})(place).then(() => process.send('connected'))); process.send(${place});`;
    const { status, signal, stdout } = runGuest(`
      const { once } = require('node:events');
      const stdio = ['ignore', 'ignore', 'inherit', 'ipc'];
      const peer = require('node:child_process').spawn(process.execPath, ['-e', ${JSON.stringify(peer)}], { stdio });
      process.on('exit', () => peer.kill('SIGKILL'));
      const end = ${open};
      const [place] = await once(peer, 'message');
      peer.send(${place});
      await Promise.all([once(peer, 'message'), (${connect})(place)]);
      peer.kill('SIGSTOP');
      const slab = native.allocateSlab(40_000, 64);
      for (let sent = 0; sent < 5; sent += 1) end.send(slab, 40_000, Uint8Array.of(1));
      end.close(3_600_000);
      peer.disconnect();
      peer.unref();
      console.log('ends');`);
    expect({ status, signal, stdout }).toEqual({ status: 0, signal: null, stdout: 'ends\n' });
  });

  test('is there for a thread while another waits for it', () => {
    const thread = `const native = require(${JSON.stringify(addonPath())}); ${useUcx};
      const { workerData } = require('node:worker_threads');
      useUcx(native, 'machine').then(() => { Atomics.store(workerData, 0, 1); Atomics.notify(workerData, 0); });`;
    const { stdout } = runGuest(`
      await useUcx(native, 'machine');
      const { Worker } = require('node:worker_threads');
      const workerData = new Int32Array(new SharedArrayBuffer(4));
      const worker = new Worker(${JSON.stringify(thread)}, { eval: true, workerData });
      await require('node:events').once(worker, 'online');
      console.log(Atomics.wait(workerData, 0, 0, 60_000) !== 'timed-out');
      process.exit();`);
    expect(stdout).toBe('true\n');
  });

  test("takes the environment's own options before those of the call", () => {
    const { stdout } = runGuest("console.log(await useUcx(native, 'machine'));", { UCX_TLS: 'tcp' });
    expect(stdout).toContain('tcp');
  });

  test('may be missing on the machine: the addon loads, and says why UCX does not', () => {
    const folder = mkdtempSync(join(tmpdir(), 'switchyard-'));
    try {
      const addon = join(folder, 'switchyard.node');
      copyFileSync(addonPath(), addon);
      writeFileSync(join(folder, 'switchyard_ucx.so'), 'no library');
      const { stdout } = runGuest(
        `console.log(native.describe().ucx.version);
        await useUcx(native, 'machine').catch((error) => console.log(error.code, error.message));`,
        {},
        addon,
      );
      expect(stdout).toMatch(/^null\nLINK_LOST UCX cannot be loaded: .*switchyard_ucx\.so/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

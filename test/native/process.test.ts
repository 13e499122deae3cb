import { spawnSync } from 'node:child_process';
import { describe, expect, test } from '@jest/globals';
import { addonPath } from '../../native/locate.js';
import { runScript } from './support.js';

const tensor = (rows: number) =>
  `{ kind: 'synthetic', seed: 1, stream: 1, rows: ${rows}, columns: 1024, scale: 1, center: 0 }`;

describe('the process', () => {
  test('that only imports the addon ends by itself', async () => {
    expect(await runScript(`console.log(typeof native.allocateSlab)`)).toBe('function\n');
  });

  test('waits for pending operations and then ends by itself', async () => {
    const output = await runScript(`
      const backend = native.createCpuBackend({ threads: 2 });
      const pending = Array.from({ length: 32 }, () => native.readTensor(${tensor(512)}));
      Promise.all(pending).then((slabs) => console.log(slabs.length, backend.description.kind));
    `);
    expect(output).toBe('32 cpu\n');
  });

  test('may exit while operations run', async () => {
    const output = await runScript(`
      for (let i = 0; i < 64; i += 1) native.readTensor(${tensor(4096)});
      setTimeout(() => { console.log('leaving'); process.exit(0); }, 5);
    `);
    expect(output).toBe('leaving\n');
  });

  test('can be made to end in time, even while its event loop is blocked', () => {
    const script = `
      const native = require(${JSON.stringify(addonPath())});
      native.endWithin(60_000, 1);
      native.endWithin(200, 3);
      for (;;);`;
    const { status, stderr } = spawnSync(process.execPath, ['-e', script], {
      encoding: 'utf8',
      timeout: 120_000,
    });
    expect(status).toBe(3);
    expect(stderr).toBe('switchyard: the process has not ended within 200 ms and is cut\n');
  });

  test('refuses to change the number of threads once they run', async () => {
    const output = await runScript(`
      native.configure({ slabBytesMax: 1 << 24, threads: 3 });
      native.readTensor(${tensor(1)}).then(() => {
        native.configure({ slabBytesMax: 1 << 23, threads: 3 });
        try { native.configure({ slabBytesMax: 1 << 22, threads: 1 }); } catch (error) {
          console.log(error.code, error.operation, error.message, native.arenaStats().bytesLimit);
        }
      });
    `);
    expect(output).toBe(
      `INVALID_ARGUMENT configure threads is 1; allowed: 3, as the pool runs already ${1 << 23}\n`,
    );
  });

  test('settles however many operations were begun in one turn, each once', async () => {
    const output = await runScript(`
      const source = new Uint8Array(8);
      const target = native.allocateSlab(8);
      let settled = 0;
      const pending = Array.from({ length: 50_000 }, () =>
        native.copyIn(source, target, 0).then(() => { settled += 1; }));
      Promise.all(pending).then((counts) => console.log(counts.length, settled));
    `);
    expect(output).toBe('50000 50000\n');
  });

  test('reports what is thrown after an operation as an uncaught exception, and goes on', async () => {
    const output = await runScript(`
      process.on('uncaughtException', (error, origin) => console.log(error.message, origin));
      native.readTensor(${tensor(1)}).then(() => process.nextTick(() => { throw new Error('thrown'); }));
      native.readTensor(${tensor(1)}).then(() => { throw new Error('rejected'); });
      setTimeout(async () => console.log((await native.readTensor(${tensor(1)})).byteLength), 200);
    `);
    expect(output.split('\n').sort().join()).toBe(
      ',2048,rejected unhandledRejection,thrown uncaughtException',
    );
  });
});

describe('a worker thread', () => {
  test('may be terminated in the middle of operations, again and again', async () => {
    const body = `
      const rows = new Uint8Array(64 * 8192);
      const target = native.allocateSlab(rows.length);
      const again = () => native.copyIn(rows, target, 0).then(again);
      for (let i = 0; i < 32; i += 1) again();
      for (let i = 0; i < 8; i += 1) native.readTensor(${tensor(2048)});
      parentPort.postMessage('busy');
    `;
    const output = await runScript(`
      (async () => {
        for (let i = 0; i < 20; i += 1) {
          const worker = startWorker(${JSON.stringify(body)});
          await new Promise((resolve) => worker.once('message', resolve));
          await worker.terminate();
        }
        const slab = await native.readTensor(${tensor(4)});
        console.log('main works', slab.byteLength);
      })();
    `);
    expect(output).toBe('main works 8192\n');
  });

  test('waits for pending operations and then ends by itself, as does one that exits among them', async () => {
    const begin = `for (let i = 0; i < 8; i += 1) native.readTensor(${tensor(512)}).then(() => parentPort.postMessage(i));`;
    const output = await runScript(`
      (async () => {
        for (const last of ['', 'process.exit(3);']) {
          const worker = startWorker(${JSON.stringify(begin)} + last);
          let settled = 0;
          worker.on('message', () => { settled += 1; });
          const code = await new Promise((resolve) => worker.once('exit', resolve));
          console.log(code, settled);
        }
      })();
    `);
    expect(output).toBe('0 8\n3 0\n');
  });

  test('may be the only one that loads the addon, and end with an expert at work', async () => {
    const body = `
      const matrix = (stream, rows, columns) =>
        ({ kind: 'synthetic', seed: 1, stream, rows, columns, scale: 1, center: 0 });
      (async () => {
        const backend = native.createCpuBackend({ threads: 2 });
        const up = matrix(1, 512, 256);
        const down = matrix(2, 256, 512);
        const expert = await backend.load({ activation: 'gelu', gate: null, up, down });
        const rows = await native.readTensor(matrix(3, 256, 256));
        const indices = Uint32Array.from({ length: 256 }, (_, index) => index);
        for (let i = 0; i < 64; i += 1) {
          const output = native.allocateSlab(256 * 512);
          backend.forward([{ expert, inputs: [{ rows, indices, output, outputRow: 0, inputWeights: null }] }]);
        }
        parentPort.postMessage('busy');
      })();
    `;
    const output = await runScript(`
      const worker = startWorker(${JSON.stringify(body)});
      worker.once('message', async () => {
        await worker.terminate();
        setTimeout(() => console.log('over'), 50);
      });
    `);
    expect(output).toBe('over\n');
  });

  test('shares the arena and the pool with the main thread', async () => {
    const output = await runScript(`
      const kept = native.allocateSlab(4096);
      const worker = startWorker(\`
        const own = native.allocateSlab(4096);
        native.readTensor(${tensor(1)}).then(() => parentPort.postMessage(native.arenaStats().slabs));
      \`);
      worker.once('message', (slabs) => console.log(slabs));
      worker.once('exit', () => console.log(native.arenaStats().slabs, kept.released));
    `);
    expect(output).toBe('3\n1 false\n');
  });
});

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { native, type Slab, type TensorSource } from '../../native/index.js';
import { addonPath } from '../../native/locate.js';
import { softmaxRouting } from '../../services/model/synthetic.js';

const word = new DataView(new ArrayBuffer(4));

/** The float whose upper half is `bits`. */
export function fromBf16(bits: number): number {
  word.setUint32(0, bits * 0x10000);
  return word.getFloat32(0);
}

/** Nearest BF16 of a finite number, ties to even. */
export function toBf16(value: number): number {
  word.setFloat32(0, value);
  const bits = word.getUint32(0);
  return Math.floor((bits + 0x7fff + (Math.floor(bits / 0x10000) % 2)) / 0x10000) & 0xffff;
}

/** `value` as BF16 holds it. */
export function rounded(value: number): number {
  return fromBf16(toBf16(value));
}

export function slabOf(values: ArrayLike<number>): Slab {
  const slab = native.allocateSlab(values.length * 2);
  const bits = new Uint16Array(slab.view().buffer);
  for (let i = 0; i < values.length; i += 1) bits[i] = toBf16(values[i]!);
  return slab;
}

/** A slab of float32, as createGate takes its weight. */
export function floatsOf(values: ArrayLike<number>): Slab {
  const slab = native.allocateSlab(values.length * 4);
  new Float32Array(slab.view().buffer).set(values);
  return slab;
}

export function valuesOf(slab: Slab): number[] {
  return Array.from(new Uint16Array(slab.view().buffer), fromBf16);
}

/** Repeatable values in [-1, 1) that BF16 holds exactly. */
export function someValues(count: number, seed: number): number[] {
  let state = seed;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return rounded(state / 2 ** 31 - 1);
  });
}

export const routing = softmaxRouting(2);

export function synthetic(stream: number, rows: number, columns: number): TensorSource {
  return { kind: 'synthetic', seed: 1, stream, rows, columns, scale: 0.5, center: 0 };
}

export function allRows(count: number): Uint32Array {
  return Uint32Array.from({ length: count }, (_, index) => index);
}

/**
 * Runs a script in a process of its own. It has `native` (loaded at its first use) and `startWorker(body)`, which runs
 * `body` in a worker thread with `native` and `parentPort`. Resolves with the standard output once the process has
 * ended by itself; rejects if it fails, or if it still runs after 30 s.
 */
export async function runScript(script: string): Promise<string> {
  const prelude = `
    const addon = ${JSON.stringify(addonPath())};
    const { Worker } = require('node:worker_threads');
    Object.defineProperty(globalThis, 'native', { get: () => require(addon) });
    function startWorker(body) {
      const source = 'const native = require(' + JSON.stringify(addon) + ');' +
        "const { parentPort } = require('node:worker_threads');" + body;
      const worker = new Worker(source, { eval: true });
      worker.on('error', (error) => { throw error; });
      return worker;
    }`;
  const source = `${prelude}\n${script}`;
  const { stdout } = await promisify(execFile)(process.execPath, ['-e', source], { timeout: 120_000 });
  return stdout;
}

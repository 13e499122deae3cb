/**
 * One layer of DeepSeek-V3 in its true shape: 256 experts of 7168 x 2048 in FP8 with scales of 128 x 128 blocks, top-8 of 4 of 8 groups, a
 * shared expert; 11.3 GB. Two workers load it and compute a batch, of which a sample is compared with the float64 reference; what that took, and the memory
 * of each process, is printed.
 *   node scripts/check-deepseek-layer.mjs [FOLDER] [--tokens 256] [--random 32] (after npm run bootstrap; needs 16 GB of memory)
 * The shared expert and so many others have random weights; those of the rest are zero, and holes of the file: it takes little of the disk, whose rate is not
 * what is measured, and every byte is read, hashed and held as any other.
 */
import { execFile, execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { SwitchyardClient } from '../dist/services/client/index.js';
import { check } from './checks.mjs';
import { LocalProcesses } from './local-processes.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const { values, positionals } = parseArgs({
  options: { tokens: { type: 'string', default: '256' }, random: { type: 'string', default: '32' } },
  allowPositionals: true,
});
const randomExperts = Number(values.random);
const loadMsMax = 600_000;
const [hidden, ffn, experts] = [7168, 2048, 256];
const config = {
  architectures: ['DeepseekV3ForCausalLM'],
  model_type: 'deepseek_v3',
  hidden_size: hidden,
  moe_intermediate_size: ffn,
  intermediate_size: 18_432,
  n_routed_experts: experts,
  n_shared_experts: 1,
  num_experts_per_tok: 8,
  n_group: 8,
  topk_group: 4,
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  scoring_func: 'sigmoid',
  topk_method: 'noaux_tc',
  num_hidden_layers: 1,
  first_k_dense_replace: 0,
  num_nextn_predict_layers: 0,
  rms_norm_eps: 1e-6,
  hidden_act: 'silu',
  quantization_config: {
    quant_method: 'fp8',
    fmt: 'e4m3',
    activation_scheme: 'dynamic',
    weight_block_size: [128, 128],
  },
};

/** Bytes of random content, to be cut from anywhere. */
const pool = (bytes, make) => {
  const random = randomBytes(bytes);
  for (let at = 0; at < bytes; at += 1) random[at] = make(random[at]);
  return random;
};
/** Codes of E4M3 of either sign with magnitudes from 2^-4 to 2: none stands for NaN. */
const codes = pool(48 << 20, (byte) => (byte & 0x80) | (0x18 + ((byte & 0x7f) % 0x28)));
const floats = (count, make) => Buffer.from(Float32Array.from({ length: count }, make).buffer);
const bfloats = (count, make) => {
  const wide = new Uint32Array(Float32Array.from({ length: count }, make).buffer);
  return Buffer.from(Uint16Array.from(wide, (bits) => bits >>> 16).buffer);
};
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

/** Name, type, shape and content of each tensor; null: zeros. */
function* tensors() {
  const layer = 'model.layers.0';
  yield [`${layer}.post_attention_layernorm.weight`, 'BF16', [hidden], () => bfloats(hidden, () => 1)];
  const gate = () => bfloats(experts * hidden, () => normal() / Math.sqrt(hidden));
  yield [`${layer}.mlp.gate.weight`, 'BF16', [experts, hidden], gate];
  yield [
    `${layer}.mlp.gate.e_score_correction_bias`,
    'F32',
    [experts],
    () => floats(experts, () => normal() / 100),
  ];
  const names = ['shared_experts', ...Array.from({ length: experts }, (_, expert) => `experts.${expert}`)];
  for (const [index, name] of names.entries())
    for (const [matrix, shape] of [
      ['gate_proj', [ffn, hidden]],
      ['up_proj', [ffn, hidden]],
      ['down_proj', [hidden, ffn]],
    ]) {
      const bytes = hidden * ffn;
      const cut = () => {
        const at = Math.floor(Math.random() * (codes.length - bytes));
        return codes.subarray(at, at + bytes);
      };
      const content = index <= randomExperts ? cut : null;
      yield [`${layer}.mlp.${name}.${matrix}.weight`, 'F8_E4M3', shape, content];
      const blocks = shape.map((side) => side / 128);
      const scales = () =>
        floats(blocks[0] * blocks[1], () => (0.75 + Math.random() / 2) / Math.sqrt(shape[1]));
      yield [`${layer}.mlp.${name}.${matrix}.weight_scale_inv`, 'F32', blocks, scales];
    }
}

const bytesOf = { BF16: 2, F32: 4, F8_E4M3: 1 };

const sizeOf = (dtype, shape) => shape.reduce((product, side) => product * side, bytesOf[dtype]);

function writeCheckpoint(folder) {
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  const header = {};
  let offset = 0;
  for (const [name, dtype, shape] of tensors()) {
    const end = offset + sizeOf(dtype, shape);
    header[name] = { dtype, shape, data_offsets: [offset, end] };
    offset = end;
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const path = join(folder, 'model.safetensors');
  const file = openSync(path, 'w');
  let position = 0;
  const write = (bytes) => {
    for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at, bytes.length - at, position + at);
    position += bytes.length;
  };
  for (const bytes of [length, text]) write(bytes);
  for (const [, dtype, shape, content] of tensors()) {
    if (content === null) position += sizeOf(dtype, shape);
    else write(content());
  }
  ftruncateSync(file, position);
  closeSync(file);
  return { path, bytes: offset };
}

/** Reads every second block of a file from block `first` on into memory that was not touched before, as weights are; prints the seconds. */
const reader = `
const { openSync, readSync } = require('node:fs');
const [path, first] = process.argv.slice(1);
const started = performance.now();
const file = openSync(path, 'r');
const kept = [];
for (let at = Number(first), read = 1; read > 0; at += 2) {
  kept.push(Buffer.allocUnsafeSlow(64 << 20));
  read = readSync(file, kept.at(-1), 0, 64 << 20, at * (64 << 20));
}
console.log((performance.now() - started) / 1000);
`;

/** Seconds in which two processes read a file, half of it each. */
async function readPlainly(path) {
  const halves = ['0', '1'].map((first) =>
    promisify(execFile)(process.execPath, ['-e', reader, path, first]),
  );
  return Math.max(...(await Promise.all(halves)).map(({ stdout }) => Number(stdout)));
}

const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;
const residentBytes = (pid) =>
  Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) * 1024;

const folder = mkdtempSync(join(positionals[0] ?? tmpdir(), 'switchyard-deepseek-'));
const processes = new LocalProcesses();
try {
  const { path, bytes } = writeCheckpoint(folder);
  // The file is in memory then, as the next one who reads it finds it.
  await readPlainly(path);
  const plainSeconds = await readPlainly(path);
  console.log(
    `${gigabytes(bytes)} of weights; plain reading by two processes, into memory of their own: ${plainSeconds.toFixed(1)} s, ${gigabytes(bytes / plainSeconds)}/s`,
  );
  const started = performance.now();
  const coordinator = await processes.start(root, 'coordinator', 'coordinator', {
    model: folder,
    workers: 2,
  });
  const hashed = (performance.now() - started) / 1000;
  const workers = [];
  for (const name of ['w0', 'w1'])
    workers.push(
      await processes.start(root, 'worker', name, { coordinator: coordinator.address, model: folder }),
    );
  const client = await SwitchyardClient.connect(coordinator.address);
  await client.waitUntilReady(loadMsMax);
  const seconds = (performance.now() - started) / 1000;
  await client.close();
  let slowest = 0;
  for (const name of ['w0', 'w1']) {
    const { seconds: loading, bytes: loaded } = await processes.event('experts-loaded', { name });
    console.log(`${name}: ${gigabytes(loaded)} in ${loading.toFixed(1)} s, ${gigabytes(loaded / loading)}/s`);
    slowest = Math.max(slowest, loading);
  }
  console.log(
    `both load at ${(plainSeconds / slowest).toFixed(2)} of the rate of plain reading; hashing before, once a host: ${hashed.toFixed(1)} s, ${gigabytes(bytes / hashed)}/s; all is ready after ${seconds.toFixed(1)} s`,
  );
  const forward = [
    'forward',
    '--address',
    coordinator.address,
    '--sequences',
    '1',
    '--length',
    values.tokens,
    '--verify',
    '16',
    '--no-feedback',
    '--json',
  ];
  const program = join(root, 'dist', 'bin', 'switchyard.js');
  const report = JSON.parse(
    execFileSync(process.execPath, [program, ...forward], { encoding: 'utf8', maxBuffer: 1 << 28 }),
  );
  console.log(JSON.stringify(report.verification ?? report));
  for (const { name, child } of [coordinator, ...workers])
    console.log(`${name}: at most ${gigabytes(residentBytes(child.pid))} in memory`);
  check(
    'the batch is as the reference computes it',
    report.verification?.verified ?? false,
    JSON.stringify(report),
  );
} finally {
  await processes.stop();
  rmSync(folder, { recursive: true });
}

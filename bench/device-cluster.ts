import { availableParallelism } from 'node:os';
import { native } from '../native/index.js';
import { invalidArgument } from '../services/common/errors.js';
import { type PresetName, presets } from '../services/model/synthetic.js';
import { type Bare, BareDevice, BareFfn } from './bare.js';
import { compare } from './cluster.js';
import type { BenchOptions, BenchResult } from './report.js';

interface DeviceCase {
  id: string;
  preset: PresetName;
  chunkTokens: number;
}

export const deviceCases: readonly DeviceCase[] = [
  // 512 rows for an expert on average: large products, and messages of 32 MiB.
  { id: 'cluster/gpu-seed', preset: 'reference', chunkTokens: 4_096 },
  // So small that it tells whether a device works, not how fast.
  { id: 'cluster/gpu-tiny', preset: 'tiny', chunkTokens: 256 },
];
/** What one run lasts, more or less. */
const runSeconds = 4;
const chunksMin = 8;
const bareExperts = 4;
/** A device computes as fast as many cores: routers that have enough of them to keep up with it. */
const coresPerRouter = 4;
/** More in flight than by default, for a device that computes a chunk in milliseconds. */
const memory = {
  router: { budgetBytes: '4GiB' },
  worker: { slabBytes: '8GiB', linkWindowBytes: '1GiB', messageBytesMax: '256MiB' },
};

/**
 * One worker process on a device (`options.device`; without one the first CUDA device, if there is one), routers and a
 * client, against the bare expert FFN on that device, rows resident. On `cpu` the worker has all cores.
 */
export async function benchDeviceCluster(
  { id: name, preset, chunkTokens }: DeviceCase,
  options: BenchOptions,
): Promise<BenchResult[]> {
  const device = options.device ?? 'cuda:0';
  const { cuda } = native.describe();
  const problem = cuda === null ? 'the addon is built without CUDA' : cuda.problem;
  if (problem !== null && device !== 'cpu') {
    if (options.device !== null) throw invalidArgument('device', device, `cpu, because ${problem}`);
    options.log(`${name} is left out: ${problem}`);
    return [];
  }
  const cores = availableParallelism();
  const routers = Math.max(1, Math.floor(cores / coresPerRouter));
  const router = { threads: Math.min(cores, coresPerRouter), ...memory.router };
  const bare = await openBare(preset, device, cores, options);
  const tokens = chunksMin * chunkTokens;
  const id = device === 'cpu' ? name.replace('/gpu-', '/cpu-') : name;
  const setup = {
    workers: 1,
    routers: routers - 1,
    threads: cores,
    coordinator: router,
    router,
    worker: { device, ...memory.worker },
  };
  const result = await compare({ id, preset, tokens, runSeconds, chunkTokens }, bare, setup, options);
  return [{ ...result, details: { device: deviceName(device), routers, ...result.details } }];
}

async function openBare(
  preset: PresetName,
  device: string,
  cores: number,
  { log }: BenchOptions,
): Promise<Bare> {
  const spec = presets[preset].model;
  if (device !== 'cpu') return BareDevice.open(spec, device, bareExperts, log);
  return BareFfn.open({ kind: 'synthetic', spec }, cores, bareExperts);
}

function deviceName(device: string): string {
  const { cpu, cuda } = native.describe();
  return device === 'cpu' ? cpu : (cuda?.devices[Number(device.slice('cuda:'.length))]?.name ?? device);
}

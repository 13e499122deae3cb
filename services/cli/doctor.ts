import { accessSync, constants, existsSync, readFileSync, statfsSync } from 'node:fs';
import { createServer } from 'node:net';
import { availableParallelism, cpus, freemem, totalmem } from 'node:os';
import { delimiter, join } from 'node:path';
import { z } from 'zod';
import type { Addon, CudaDescription, UcxDescription } from '../../native/index.js';
import { addonPath, buildCommand } from '../../native/locate.js';
import { toggle } from '../common/config.js';
import { SwitchyardError } from '../common/errors.js';
import { type Bound, coreBound, memoryBound } from '../common/machine.js';
import { whyNoBlake3 } from '../model/blake3.js';
import { defineCommand } from './command.js';
import { bytes, table } from './format.js';

interface Finding {
  name: string;
  /** `missing`: switchyard cannot run without it. `absent`: it runs, without what this brings. */
  state: 'ok' | 'absent' | 'missing';
  detail: string;
}

const nodeVersionMin = [20, 17] as const;
const defaultPorts = { coordinator: 7070, 'coordinator metrics': 7071 };

export const doctorCommand = defineCommand({
  name: 'doctor',
  summary: 'Show what this machine has of what switchyard needs or can use',
  section: 'doctor',
  schema: z.object({ json: toggle().default(false) }),
  help: { json: [null, 'print the findings as JSON'] },
  examples: ['switchyard doctor', 'switchyard doctor --json > doctor.json'],
  run: async ({ json }) => {
    const addon = await loadAddon();
    const findings = [...software(addon), ...machine(addon), ...(await ports())];
    if (json) process.stdout.write(`${JSON.stringify(findings, null, 2)}\n`);
    else {
      const rows = findings.map(({ name, state, detail }) => [state.toUpperCase(), name, detail]);
      process.stdout.write(`${table(rows)}\n`);
    }
    const missing = findings.filter(({ state }) => state === 'missing').map(({ name }) => name);
    if (missing.length > 0) throw new SwitchyardError('INTERNAL', `missing: ${missing.join(', ')}`);
  },
});

function node(): Finding {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const enough = major > nodeVersionMin[0] || (major === nodeVersionMin[0] && minor >= nodeVersionMin[1]);
  const detail = `${process.versions.node}; ${nodeVersionMin.join('.')} or newer is needed`;
  return { name: 'Node', state: enough ? 'ok' : 'missing', detail };
}

function software(addon: Addon | string): Finding[] {
  const found: Finding[] = [node()];
  if (typeof addon === 'string') {
    found.push({ name: 'native addon', state: 'missing', detail: addon });
    const flags = /^flags\s*:(.*)$/m.exec(read('/proc/cpuinfo'))?.[1] ?? '';
    const known = ['avx2', 'fma', 'avx512f', 'avx512_bf16', 'amx_bf16'].filter((flag) =>
      flags.includes(flag),
    );
    found.push(instructionSet(cpus()[0]?.model ?? 'unknown CPU', known));
  } else {
    const about = addon.describe();
    found.push({ name: 'native addon', state: 'ok', detail: addonPath() });
    found.push(instructionSet(about.cpu, about.isa));
    found.push(ucx(about.ucx), encryption(about.ucx));
    found.push(...cuda(about.cuda));
  }
  const noHashes = whyNoBlake3();
  found.push({
    name: 'BLAKE3',
    state: noHashes === null ? 'ok' : 'absent',
    detail: noHashes ?? 'checkpoints are known by the digests of their files',
  });
  const prometheus = onPath('prometheus');
  found.push({
    name: 'Prometheus',
    state: prometheus ? 'ok' : 'absent',
    detail: prometheus ?? 'not on PATH; /metrics can be read by any other',
  });
  return found;
}

/** The addon, or why it cannot be loaded. */
async function loadAddon(): Promise<Addon | string> {
  try {
    return (await import('../../native/index.js')).native;
  } catch (error) {
    return (error as Error).message.split('\n')[0]!;
  }
}

function instructionSet(cpu: string, isa: readonly string[]): Finding {
  const enough = isa.some((name) => /^avx2$/i.test(name));
  return {
    name: 'CPU',
    state: enough ? 'ok' : 'missing',
    detail: `${cpu}: ${isa.join(' ') || 'no AVX2, which is needed'}`,
  };
}

function library(name: string, version: string | null, without: string): Finding {
  return version === null
    ? { name, state: 'absent', detail: `not built in; ${without}` }
    : { name, state: 'ok', detail: version };
}

function ucx(found: UcxDescription | null): Finding {
  const without = 'token batches travel over gRPC; to have it: apt-get install';
  if (found === null) return library('UCX', null, `${without} libucx-dev, then ${buildCommand()}`);
  if (found.version !== null) return { name: 'UCX', state: 'ok', detail: found.version };
  return { name: 'UCX', state: 'absent', detail: `${without} libucx0: ${found.problem}` };
}

/** Whether rows that UCX carries to other hosts can be encrypted. */
function encryption(found: UcxDescription | null): Finding {
  const name = 'encrypted rows';
  if (found?.encrypts)
    return { name, state: 'ok', detail: 'with TLS, rows between hosts travel over UCX by TLS 1.3' };
  const how = found === null ? 'UCX' : `apt-get install libssl-dev, then ${buildCommand()}`;
  return {
    name,
    state: 'absent',
    detail: `with TLS, rows between hosts travel over gRPC; to have UCX: ${how}`,
  };
}

/** What the build has of CUDA, and every device that workers can use. */
function cuda(found: CudaDescription | null): Finding[] {
  if (found === null) return [library('CUDA', null, 'experts are computed by the CPU')];
  const { runtime, driver, devices, problem } = found;
  const versions = `built with ${runtime ?? 'CUDA'}, driver for ${driver ?? 'none'}`;
  const usable = problem === null && devices.length > 0;
  return [
    {
      name: 'CUDA',
      state: usable ? 'ok' : 'absent',
      detail: usable
        ? versions
        : `${versions}; experts are computed by the CPU: ${problem ?? 'no device was found'}`,
    },
    ...devices.map(
      ({ name, capability, memoryBytes }, index): Finding => ({
        name: `cuda:${index}`,
        state: 'ok',
        detail: `${name}, compute capability ${capability}, ${bytes(memoryBytes)}`,
      }),
    ),
  ];
}

function machine(addon: Addon | string): Finding[] {
  const memory = memoryBound();
  const cores = coreBound();
  const limited = (limit: string, { by }: Bound) => (by === null ? '' : `, limited to ${limit} by ${by}`);
  return [
    {
      name: 'cores',
      state: 'ok',
      detail: `${availableParallelism()} usable of ${cpus().length}${limited(cores.value.toFixed(2), cores)}`,
    },
    {
      name: 'memory',
      state: 'ok',
      detail: `${bytes(freemem())} free of ${bytes(totalmem())}${limited(bytes(memory.value), memory)}`,
    },
    ...(typeof addon === 'string' ? [] : [hugePages(addon.hugePageShare(), readHugePageFiles())]),
    sharedMemory(),
    {
      name: 'NVIDIA device',
      state: existsSync('/dev/nvidiactl') ? 'ok' : 'absent',
      detail: existsSync('/dev/nvidiactl') ? '/dev/nvidiactl' : 'no /dev/nvidiactl',
    },
  ];
}

const hugePagesPath = '/sys/kernel/mm/transparent_hugepage/enabled';
/** Newer kernels have a setting for each size; it decides unless it is `inherit`. */
const hugePagesSizePath = '/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled';

/** What the system says of huge pages; empty where it has no such file. */
interface HugePageFiles {
  enabled: string;
  sizeEnabled: string;
  /** Of this process. */
  status: string;
  memory: string;
}

function readHugePageFiles(): HugePageFiles {
  return {
    enabled: read(hugePagesPath),
    sizeEnabled: read(hugePagesSizePath),
    status: read('/proc/self/status'),
    memory: read('/proc/meminfo'),
  };
}

/** Whether weights lie in huge pages, by the share of such memory that got them, and what keeps them from it. */
export function hugePages(share: number, files: HugePageFiles): Finding {
  const chosen = (setting: string) => /\[(\w+)\]/.exec(setting)?.[1];
  const ofSize = chosen(files.sizeEnabled) ?? 'inherit';
  const [path, setting] =
    ofSize === 'inherit' ? [hugePagesPath, chosen(files.enabled) ?? 'unknown'] : [hugePagesSizePath, ofSize];
  const reserved = /^HugePages_Total:\s+(\d+)/m.exec(files.memory)?.[1] ?? '0';
  const finding = (state: Finding['state'], weights: string): Finding => ({
    name: 'huge pages',
    state,
    detail: `transparent: ${setting}: expert weights lie ${weights}; ${reserved} reserved`,
  });
  if (share === 1) return finding('ok', 'in them');
  let why = `echo madvise > ${path}`;
  if (/^THP_enabled:\s+0/m.test(files.status)) why = 'not for this process';
  else if (setting === 'always' || setting === 'madvise')
    why = 'memory is fragmented: echo 1 > /proc/sys/vm/compact_memory';
  const where = `${share > 0 ? 'partly ' : ''}in pages of 4 KiB`;
  return finding('absent', `${where}, which takes time where a batch has few rows (${why})`);
}

function sharedMemory(): Finding {
  try {
    const { bsize, blocks, bavail } = statfsSync('/dev/shm');
    return {
      name: '/dev/shm',
      state: 'ok',
      detail: `${bytes(bavail * bsize)} free of ${bytes(blocks * bsize)}`,
    };
  } catch {
    return { name: '/dev/shm', state: 'absent', detail: 'cannot be read' };
  }
}

async function ports(): Promise<Finding[]> {
  return Promise.all(
    Object.entries(defaultPorts).map(async ([name, port]): Promise<Finding> => {
      const free = await canListen(port);
      const detail = `${port}, the default, is ${free ? 'free' : 'in use: give another'}`;
      return { name: `port (${name})`, state: free ? 'ok' : 'absent', detail };
    }),
  );
}

function canListen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}

function onPath(command: string): string | null {
  const paths = (process.env.PATH ?? '').split(delimiter).map((directory) => join(directory, command));
  return paths.find(isExecutable) ?? null;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** A file's text; empty where there is no such file. */
function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

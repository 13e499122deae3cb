import { readFileSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import { dirname, join } from 'node:path';

/** How much of something this process may use. */
export interface Bound {
  value: number;
  /** The file of a control group (cgroup) that says so; null: the machine has no more. */
  by: string | null;
}

/** What Node takes with its heap, code and stacks beside slabs and weights. */
export const processBytes = 192 * 1024 * 1024;

const processFile = '/proc/self/cgroup';
const mount = '/sys/fs/cgroup';

/** A controller's limit in a directory of a cgroup: which file holds it, and how to read it. Not finite: there is none. */
interface LimitFile {
  controller: string;
  v1: string;
  v2: string;
  read(path: string): number;
}

const memoryFile: LimitFile = {
  controller: 'memory',
  v1: 'memory.limit_in_bytes',
  v2: 'memory.max',
  // The word "max" where there is none.
  read: (path) => Number(readFileSync(path, 'utf8')),
};

const cpuFile: LimitFile = {
  controller: 'cpu',
  v1: 'cpu.cfs_quota_us',
  v2: 'cpu.max',
  read: (path) => {
    const [quota = '', period] = readFileSync(path, 'utf8').trim().split(' ');
    const cores = Number(quota) / Number(period ?? readFileSync(join(dirname(path), 'cpu.cfs_period_us')));
    return cores > 0 ? cores : Number.NaN;
  },
};

/** The tightest limit on the way from this process's group up to the root: each group is bounded by those around it. */
function tightest(file: LimitFile, whole: number, groups: string, root: string): Bound {
  let bound: Bound = { value: whole, by: null };
  for (const path of candidates(file, groups, root)) {
    try {
      const value = file.read(path);
      if (value < bound.value) bound = { value, by: path };
    } catch {
      // Version 1 and 2 differ in their files, a container sees its group as the root, and the root has no limit.
    }
  }
  return bound;
}

function candidates({ controller, v1, v2 }: LimitFile, groups: string, root: string): string[] {
  return groups.split('\n').flatMap((line) => {
    const [, controllers, group] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (group === undefined) return [];
    const above = group.split('/').map((_, depth, parts) => parts.slice(0, parts.length - depth).join('/'));
    if (controllers === '') return above.map((path) => join(root, path, v2));
    if (!controllers!.split(',').includes(controller)) return [];
    return [controllers!, controller].flatMap((name) => above.map((path) => join(root, name, path, v1)));
  });
}

function ownGroups(): string {
  try {
    return readFileSync(processFile, 'utf8');
  } catch {
    return '';
  }
}

/** Bytes that this process may take, together with the others of its control group. */
export function memoryBound(groups = ownGroups(), root = mount): Bound {
  return tightest(memoryFile, totalmem(), groups, root);
}

/** What a control group has left for its processes. */
export interface MemoryLeft {
  /** Files that the system has read do not count as used, since it forgets them when it must. */
  bytes: number;
  processes: number;
}

/** Null where no group limits memory, or it does not tell. */
export function memoryLeft({ value, by }: Bound): MemoryLeft | null {
  if (by === null) return null;
  const directory = dirname(by);
  const [usage, prefix] = by.endsWith(memoryFile.v2)
    ? ['memory.current', '']
    : ['memory.usage_in_bytes', 'total_'];
  try {
    const figures = readFileSync(join(directory, 'memory.stat'), 'utf8');
    const files = ['inactive_file', 'active_file'].map((name) =>
      Number(new RegExp(`^${prefix}${name} (\\d+)$`, 'm').exec(figures)?.[1] ?? 0),
    );
    const used = Number(readFileSync(join(directory, usage!), 'utf8')) - files[0]! - files[1]!;
    const processes = readFileSync(join(directory, 'cgroup.procs'), 'utf8').trim().split('\n').length;
    return { bytes: Math.max(0, value - used), processes };
  } catch {
    return null;
  }
}

/** What is left of what bounds the memory of this process. */
export function ownMemoryLeft(): (MemoryLeft & { bound: Bound }) | null {
  const bound = memoryBound();
  const left = memoryLeft(bound);
  return left && { ...left, bound };
}

/** Cores that this process may keep busy; a quota may be a fraction. */
export function coreBound(groups = ownGroups(), root = mount): Bound {
  return tightest(cpuFile, availableParallelism(), groups, root);
}

/** How many threads can compute side by side: what is left of a core serves the threads beside them. */
export function usableCores(): number {
  return Math.max(1, Math.floor(coreBound().value));
}

/** A bound in words, for errors: bytes and what sets them. */
export function describeMemory({ value, by }: Bound): string {
  return `${value} bytes, ${by === null ? 'the memory of this machine' : `which ${by} allows`}`;
}

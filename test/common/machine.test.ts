import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { coreBound, memoryBound, memoryLeft } from '../../services/common/machine.js';

let scratch: string;
let trees = 0;

beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'switchyard-machine-'));
});
afterAll(() => rmSync(scratch, { recursive: true }));

/** Files of control groups, as the system mounts them; `value` of the tests lies below what any machine has. */
function mounted(files: Record<string, string>): string {
  trees += 1;
  const root = join(scratch, String(trees));
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), `${text}\n`);
  }
  return root;
}

const v1 = '12:cpu,cpuacct:/pods/a\n4:memory:/pods/a\n1:name=systemd:/init\n';
const v2 = '0::/pods/a\n';
const noLimit = '9223372036854771712';
const whole = { memory: { value: totalmem(), by: null }, cores: { value: availableParallelism(), by: null } };

describe('the memory that a process reckons with', () => {
  test.each<[what: string, groups: string, files: Record<string, string>, by: string | null]>([
    ['of cgroup v2', v2, { 'pods/a/memory.max': '1048576' }, 'pods/a/memory.max'],
    [
      'of the group around it',
      v2,
      { 'pods/a/memory.max': 'max', 'pods/memory.max': '1048576' },
      'pods/memory.max',
    ],
    [
      'that is the tightest',
      v2,
      { 'pods/a/memory.max': '1048576', 'pods/memory.max': '2097152' },
      'pods/a/memory.max',
    ],
    ['of a container that sees itself as the root', '0::/\n', { 'memory.max': '1048576' }, 'memory.max'],
    ['of a container under the name that the host knows', v2, { 'memory.max': '1048576' }, 'memory.max'],
    [
      'of cgroup v1',
      v1,
      { 'memory/pods/a/memory.limit_in_bytes': '1048576', 'memory/memory.limit_in_bytes': noLimit },
      'memory/pods/a/memory.limit_in_bytes',
    ],
    [
      'of a container with cgroup v1',
      v1,
      { 'memory/memory.limit_in_bytes': '1048576' },
      'memory/memory.limit_in_bytes',
    ],
    ['that is none in cgroup v1', v1, { 'memory/pods/a/memory.limit_in_bytes': noLimit }, null],
    ['that is none in cgroup v2', v2, { 'pods/a/memory.max': 'max' }, null],
    ['without control groups', '', {}, null],
    ['of files that say nothing', v2, { 'pods/a/memory.max': 'soon' }, null],
  ])('is the limit %s', (_, groups, files, by) => {
    const root = mounted(files);
    const expected = by === null ? whole.memory : { value: 1_048_576, by: join(root, by) };
    expect(memoryBound(groups, root)).toEqual(expected);
  });
});

describe('the memory that is left', () => {
  const stat =
    'cache 900\ninactive_file 100\nactive_file 50\ntotal_inactive_file 200\ntotal_active_file 100\n';

  test.each([
    ['of cgroup v2', 'memory.max', 'memory.current', 1000 - (700 - 150)],
    ['of cgroup v1', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 1000 - (700 - 300)],
  ])('is what nobody uses but for files: %s', (_, limit, usage, left) => {
    const files = { [limit]: '1000', [usage]: '700', 'memory.stat': stat, 'cgroup.procs': '11\n12\n13' };
    const by = join(mounted(files), limit);
    expect(memoryLeft({ value: 1000, by })).toEqual({ bytes: left, processes: 3 });
  });

  test('is unknown of a group that does not tell, and where there is none', () => {
    expect(memoryLeft({ value: 1000, by: join(mounted({}), 'memory.max') })).toBeNull();
    expect(memoryLeft(whole.memory)).toBeNull();
  });
});

describe('the cores that a process reckons with', () => {
  test.each<[what: string, groups: string, files: Record<string, string>, by: string | null]>([
    ['of cgroup v2', v2, { 'pods/a/cpu.max': '50000 100000' }, 'pods/a/cpu.max'],
    [
      'of cgroup v1',
      v1,
      { 'cpu,cpuacct/pods/a/cpu.cfs_quota_us': '5000', 'cpu,cpuacct/pods/a/cpu.cfs_period_us': '10000' },
      'cpu,cpuacct/pods/a/cpu.cfs_quota_us',
    ],
    [
      'of cgroup v1 mounted by the name of the controller',
      v1,
      { 'cpu/pods/a/cpu.cfs_quota_us': '5000', 'cpu/pods/a/cpu.cfs_period_us': '10000' },
      'cpu/pods/a/cpu.cfs_quota_us',
    ],
    ['that is none in cgroup v2', v2, { 'pods/a/cpu.max': 'max 100000' }, null],
    [
      'that is none in cgroup v1',
      v1,
      { 'cpu/pods/a/cpu.cfs_quota_us': '-1', 'cpu/pods/a/cpu.cfs_period_us': '100000' },
      null,
    ],
    ['without control groups', '', {}, null],
  ])('are the quota %s', (_, groups, files, by) => {
    const root = mounted(files);
    const expected = by === null ? whole.cores : { value: 0.5, by: join(root, by) };
    expect(coreBound(groups, root)).toEqual(expected);
  });
});

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { commandLine } from '../../native/locate.js';

const mount = '/sys/fs/cgroup';

/** Where this process may make groups of its own for a controller; null: nowhere. */
function parentOf(controller: 'memory' | 'cpu'): { directory: string; v2: boolean } | null {
  const groups = readFileSync('/proc/self/cgroup', 'utf8');
  const v1 = new RegExp(`^\\d+:([^:]*,)?${controller}(,[^:]*)?:(.*)$`, 'm').exec(groups);
  const v2 = /^0::(.*)$/m.exec(groups);
  if (v1) return { directory: join(mount, controller, v1[3]!), v2: false };
  if (v2) return { directory: join(mount, v2[1]!), v2: true };
  return null;
}

/** A control group of the test's own. Its processes must have ended before it is removed. */
export class ControlGroup {
  private constructor(private readonly directory: string) {}

  /** Null, with a line that says so, where this machine does not allow it. */
  static create(controller: 'memory' | 'cpu', limits: { v1: [string, string]; v2: [string, string] }) {
    const parent = parentOf(controller);
    const directory = join(parent?.directory ?? mount, `switchyard-test-${process.pid}-${controller}`);
    try {
      if (!existsSync(directory)) mkdirSync(directory);
      const [file, value] = parent?.v2 ? limits.v2 : limits.v1;
      writeFileSync(join(directory, file), value);
      return new ControlGroup(directory);
    } catch (error) {
      const text = (error as Error).message;
      process.stderr.write(
        `\n*** NOT TESTED: limits of a control group, which cannot be made: ${text} ***\n\n`,
      );
      return null;
    }
  }

  /** `switchyard` with these arguments, in this group from its first instruction on. */
  switchyard(args: readonly string[]): GroupedProcess {
    const program = commandLine();
    const enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"';
    return new GroupedProcess(
      spawn('sh', ['-c', enter, this.directory, process.execPath, program, ...args], {
        stdio: ['ignore', 'pipe', 'pipe'],
      }),
    );
  }

  /** How often the kernel ended a process of this group to free memory. */
  oomKills(): number {
    const file = ['memory.events', 'memory.oom_control'].find((name) =>
      existsSync(join(this.directory, name)),
    );
    const text = file === undefined ? '' : readFileSync(join(this.directory, file), 'utf8');
    return Number(/^oom_kill (\d+)$/m.exec(text)?.[1]);
  }

  remove(): void {
    rmdirSync(this.directory);
  }
}

export class GroupedProcess {
  readonly lines: string[] = [];
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;

  constructor(private readonly child: ChildProcess) {
    for (const stream of [child.stdout!, child.stderr!])
      createInterface({ input: stream }).on('line', (line) => this.lines.push(line));
    this.exited = new Promise((resolve) => child.once('close', (code, signal) => resolve({ code, signal })));
  }

  async stop() {
    this.child.kill('SIGTERM');
    return this.exited;
  }
}

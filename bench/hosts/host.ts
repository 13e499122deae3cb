import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { builtFile } from '../../native/locate.js';
import { isErrorCode, SwitchyardError } from '../../services/common/errors.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { type HostCalls, type HostReply, type HostRequest, linkDevice } from './calls.js';

/**
 * A host of its own on this machine: namespaces of network, processes, IPC (unless it shares the machine's) and host name, and one core. Its first
 * process does what it is asked over Node's channel and is the host's client. The kernel ends all processes
 * of a namespace with its first one, and that one ends with this process: nothing is left over, however it ends.
 */
export class Host {
  private readonly child: ChildProcess;
  private readonly waiting = new Map<number, Deferred<unknown>>();
  private readonly ready = new Deferred<void>();
  private lastId = 0;

  private constructor(
    readonly name: string,
    readonly address: string,
    core: number,
    sharesIpc: boolean,
  ) {
    const agent = builtFile('bench', 'hosts', 'agent.js');
    const isolated = [
      '--net',
      '--uts',
      ...(sharesIpc ? [] : ['--ipc']),
      '--pid',
      '--fork',
      '--mount-proc',
      '--kill-child',
    ];
    const program = ['taskset', '-c', String(core), 'unshare', ...isolated, process.execPath, agent, name];
    this.child = spawn(program[0]!, program.slice(1), {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: process.env,
    });
    this.child.on('message', (message: HostReply | 'ready') => {
      if (message === 'ready') this.ready.resolve();
      else this.settle(message);
    });
    const end = (reason: string) =>
      this.lose(new SwitchyardError('INTERNAL', `host ${name} ended: ${reason}`));
    this.child.once('error', (error) => end(error.message));
    this.child.once('exit', (code, signal) => end(signal ?? `status ${code}`));
    // Nobody may be waiting yet; whoever asks next hears of it.
    this.ready.promise.catch(() => {});
  }

  static async start(name: string, address: string, core: number, sharesIpc = false): Promise<Host> {
    const host = new Host(name, address, core, sharesIpc);
    await host.ready.promise;
    return host;
  }

  /** What the host's first process does; see HostCalls. */
  call<Method extends keyof HostCalls>(
    method: Method,
    ...args: Parameters<HostCalls[Method]>
  ): ReturnType<HostCalls[Method]> {
    const answer = new Deferred<unknown>();
    const request: HostRequest = { id: ++this.lastId, method, args };
    this.waiting.set(request.id, answer);
    this.child.send(request, (error) => error && this.lose(error));
    return answer.promise as ReturnType<HostCalls[Method]>;
  }

  /** The process id, outside, of the host's first process. */
  get pid(): number {
    const { pid } = this.child;
    return Number(readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim());
  }

  async close(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const ended = new Promise((resolve) => this.child.once('exit', resolve));
    this.child.disconnect();
    await ended;
  }

  private settle({ id, value, error }: HostReply): void {
    const answer = this.waiting.get(id);
    this.waiting.delete(id);
    if (error === undefined) answer?.resolve(value);
    else
      answer?.reject(new SwitchyardError(isErrorCode(error.code) ? error.code : 'INTERNAL', error.message));
  }

  private lose(error: Error): void {
    this.ready.reject(error);
    for (const answer of this.waiting.values()) answer.reject(error);
    this.waiting.clear();
  }
}

/** Joins two hosts by a virtual Ethernet cable. */
export async function joinHosts(a: Host, b: Host): Promise<void> {
  const cable = `link add ${linkDevice} netns ${a.pid} type veth peer name ${linkDevice} netns ${b.pid}`;
  execFileSync('ip', cable.split(' '));
  for (const host of [a, b]) {
    for (const step of [`addr add ${host.address}/24 dev ${linkDevice}`, `link set ${linkDevice} up`]) {
      await host.call('execute', 'ip', step.split(' '));
    }
  }
}

/** Limits what each host sends to `rate`, such as "1gbit"; null: no limit. */
export async function shapeLink(hosts: readonly Host[], rate: string | null): Promise<void> {
  const limit = rate === null ? 'pfifo limit 1000' : `tbf rate ${rate} burst 256kb latency 20ms`;
  for (const host of hosts) {
    await host.call('execute', 'tc', `qdisc replace dev ${linkDevice} root ${limit}`.split(' '));
  }
}

/** Pulls the cable of joined hosts, or puts it in again. */
export async function plugCable(host: Host, state: 'up' | 'down'): Promise<void> {
  await host.call('execute', 'ip', ['link', 'set', linkDevice, state]);
}

/** Why this machine cannot have hosts; null if it can. */
export function whyNoHosts(): string | null {
  if (process.getuid?.() !== 0) return 'namespaces need the rights of root';
  for (const [program, ...args] of [
    ['ip', '-Version'],
    ['tc', '-Version'],
    ['taskset', '--version'],
    ['unshare', '--net', '--uts', '--ipc', '--pid', '--fork', '--mount-proc', 'true'],
  ]) {
    try {
      execFileSync(program!, args, { stdio: 'pipe' });
    } catch (error) {
      return `${program} does not run here: ${(error as Error).message.split('\n')[0]}`;
    }
  }
  return null;
}

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { promisify } from 'node:util';
import { Deferred } from '../../services/common/lifecycle.js';

const bridge = 'chaos';
const subnet = '10.79.0';
const prefixBits = 24;

const ip = (command: string) => promisify(execFile)('ip', command.split(' '));

/** A process's way to the others: a network namespace of its own, with a cable to a bridge in this process's, which must be one of its own too. */
interface Place {
  address: string;
  /** This end of the cable. */
  device: string;
  /** Keeps the namespace. */
  keeper: ChildProcess;
}

/** Cables between processes, which can be pulled. */
export class Cables {
  private readonly places = new Map<string, Place>();

  private constructor() {}

  static async lay(names: readonly string[]): Promise<Cables> {
    const cables = new Cables();
    try {
      await ip('link set lo up');
      await ip(`link add ${bridge} type bridge`);
      await ip(`addr add ${subnet}.1/${prefixBits} dev ${bridge}`);
      await ip(`link set ${bridge} up`);
      for (const [index, name] of names.entries()) await cables.connect(name, index + 2);
      return cables;
    } catch (error) {
      await cables.close();
      throw error;
    }
  }

  addressOf(name: string): string {
    return this.places.get(name)!.address;
  }

  /** What a command begins with to run in the process's place. */
  wrapperOf(name: string): string[] {
    return ['nsenter', `--net=/proc/${this.places.get(name)!.keeper.pid}/ns/net`];
  }

  /** Pulls a process's cable, or puts it in again. */
  async plug(name: string, state: 'up' | 'down'): Promise<void> {
    await ip(`link set ${this.places.get(name)!.device} ${state}`);
  }

  async close(): Promise<void> {
    for (const { keeper, device } of this.places.values()) {
      keeper.kill('SIGKILL');
      // The kernel would remove it too, some time later.
      await ip(`link del ${device}`).catch(() => {});
    }
    await ip(`link del ${bridge}`).catch(() => {});
  }

  private async connect(name: string, number: number): Promise<void> {
    const device = `${bridge}${number}`;
    const address = `${subnet}.${number}`;
    const ready = new Deferred<void>();
    const keeper = spawn(
      'unshare',
      ['--net', 'sh', '-c', 'ip link set lo up && echo ready && exec sleep infinity'],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    this.places.set(name, { address, device, keeper });
    keeper.stdout!.once('data', () => ready.resolve());
    keeper.once('exit', (code) => ready.reject(new Error(`the keeper of a namespace ended: ${code}`)));
    await ready.promise;
    await ip(`link add ${device} type veth peer name eth0 netns ${keeper.pid}`);
    await ip(`link set ${device} master ${bridge} up`);
    const inside = ['--net', `--target=${keeper.pid}`, 'ip'];
    for (const step of [`addr add ${address}/${prefixBits} dev eth0`, 'link set eth0 up'])
      await promisify(execFile)('nsenter', [...inside, ...step.split(' ')]);
  }
}

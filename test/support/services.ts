import { spawnSync } from 'node:child_process';
import { afterEach } from '@jest/globals';
import { type Flags, LocalProcess, type ProcessRole, parseLine } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { healthOf } from './health.js';

const closers: (() => unknown)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Runs when the test is over, the last one first. */
export function atEnd(close: () => unknown): void {
  closers.push(close);
}

/** A process of dist/ on free ports; it is stopped after the test, whatever it is by then. */
export class Service {
  readonly lines: string[] = [];
  readonly process: LocalProcess;

  constructor(role: ProcessRole, flags: Flags = {}, environment: Record<string, string> = {}) {
    const all = { port: 0, metricsPort: 0, threads: 1, ...flags };
    this.process = new LocalProcess(role, role, all, environment, (_, line) => this.lines.push(line));
    atEnd(() => this.process.stop(20_000));
  }

  /** host:port that it listens on. */
  get address(): Promise<string> {
    return this.process.listening.then(({ address }) => address);
  }

  /** The lines of its log that are of this event. */
  events(event: string): Record<string, unknown>[] {
    return this.lines.map(parseLine).flatMap((line) => (line?.event === event ? [line] : []));
  }

  /** What /readyz answers. */
  async readiness(): Promise<{ status: number; ready: boolean; reason: string }> {
    const response = await fetch(`${(await this.process.listening).metricsUrl}/readyz`);
    return { status: response.status, ...((await response.json()) as { ready: boolean; reason: string }) };
  }

  /** What grpc.health.v1 answers for the process as a whole: SERVING or NOT_SERVING. */
  async health(): Promise<string> {
    return healthOf(await this.address);
  }
}

export async function connect(address: string): Promise<SwitchyardClient> {
  const client = await SwitchyardClient.connect(address);
  atEnd(() => client.destroy());
  return client;
}

/** Whether a command ends with 0 on this machine; says that `what` is not tested if it does not. */
export function works(what: string, command: string, ...args: string[]): boolean {
  const { status } = spawnSync(command, args, { stdio: 'ignore' });
  if (status === 0) return true;
  process.stderr.write(`\n*** NOT TESTED: ${what}: ${command} ${args.join(' ')} does not work here. ***\n\n`);
  return false;
}

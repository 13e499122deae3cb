import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { packageRoot } from '../../native/locate.js';

/** A process for workers, one at a time, from dist/. `execArgv`: options of Node for it. */
export class WorkerProcess {
  private readonly child: ChildProcess;

  constructor(execArgv: string[] = []) {
    const path = join(packageRoot(), 'test', 'support', 'worker-host.mjs');
    this.child = fork(path, [], { execArgv });
  }

  /** Resolves when the worker listens; its keys are those of the configuration. */
  async start(config: Record<string, unknown>): Promise<{ address: string; metricsUrl: string }> {
    return (await this.order({ start: config })) as { address: string; metricsUrl: string };
  }

  async stop(): Promise<void> {
    await this.order({});
  }

  /** Resolves when the process is gone. */
  async kill(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exit = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await exit;
  }

  private async order(message: object): Promise<unknown> {
    const ended = once(this.child, 'exit').then(([code, signal]) => {
      throw new Error(`the process of the worker ended: ${code ?? signal}`);
    });
    ended.catch(() => {});
    this.child.send(message);
    const [{ done, error }] = (await Promise.race([once(this.child, 'message'), ended])) as [
      { done?: unknown; error?: string },
    ];
    if (error !== undefined) throw new Error(error);
    return done;
  }
}

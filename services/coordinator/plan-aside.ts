import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { builtFile } from '../../native/locate.js';
import { type ErrorCode, type ErrorDetails, SwitchyardError } from '../common/errors.js';
import type { OwnWork } from '../common/liveness.js';
import type { PlanInput } from '../placement/input.js';
import { type Plan, plan } from '../placement/plan.js';

/** What the thread says; errors lose their class on the way. */
export type PlanOutcome =
  | { planned: Plan; failed: null }
  | { planned: null; failed: { code: ErrorCode; message: string; details: ErrorDetails } };

/** Experts times workers from which on planning may take longer than other work can wait. */
const asideMin = 16_384;

/** Plans that are made in threads of their own, where that takes long. */
export class PlansAside implements OwnWork {
  readonly name = 'plans';
  done = 0;
  private readonly inputs = new Set<PlanInput>();

  underWay(): string | null {
    const [oldest] = this.inputs;
    if (oldest === undefined) return null;
    return `${this.inputs.size} under way, the oldest of ${expertsOf(oldest)} experts on ${oldest.workers.length} workers`;
  }

  /** Rejects as the planner throws. */
  async plan(input: PlanInput): Promise<Plan> {
    if (expertsOf(input) * input.workers.length < asideMin) return plan(input);
    this.inputs.add(input);
    try {
      return await planAside(input);
    } finally {
      this.inputs.delete(input);
      this.done += 1;
    }
  }
}

async function planAside(input: PlanInput): Promise<Plan> {
  const thread = new Worker(builtFile('services', 'coordinator', 'plan-thread.js'), { workerData: input });
  const [{ planned, failed }] = (await once(thread, 'message')) as [PlanOutcome];
  if (failed !== null) throw new SwitchyardError(failed.code, failed.message, failed.details);
  return planned;
}

function expertsOf({ layers }: PlanInput): number {
  return layers.reduce((sum, { loads }) => sum + loads.length, 0);
}

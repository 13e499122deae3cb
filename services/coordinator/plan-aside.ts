import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { type ErrorCode, type ErrorDetails, SwitchyardError } from '../common/errors.js';
import type { PlanInput } from '../placement/input.js';
import { type Plan, plan } from '../placement/plan.js';

/** What the thread says; errors lose their class on the way. */
export type PlanOutcome =
  | { planned: Plan; failed: null }
  | { planned: null; failed: { code: ErrorCode; message: string; details: ErrorDetails } };

/** Experts times workers from which on planning may take longer than other work can wait. */
const asideMin = 16_384;

/** Plans in a thread of its own where that takes long. Rejects as `plan` throws. */
export async function planAside(input: PlanInput): Promise<Plan> {
  const experts = input.layers.reduce((sum, { loads }) => sum + loads.length, 0);
  if (experts * input.workers.length < asideMin) return plan(input);
  const thread = new Worker(new URL('./plan-thread.js', import.meta.url), { workerData: input });
  const [{ planned, failed }] = (await once(thread, 'message')) as [PlanOutcome];
  if (failed !== null) throw new SwitchyardError(failed.code, failed.message, failed.details);
  return planned;
}

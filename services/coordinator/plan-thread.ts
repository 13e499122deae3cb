import { parentPort, workerData } from 'node:worker_threads';
import { asSwitchyardError } from '../common/errors.js';
import type { PlanInput } from '../placement/input.js';
import { plan } from '../placement/plan.js';
import type { PlanOutcome } from './plan-aside.js';

function outcome(input: PlanInput): PlanOutcome {
  try {
    return { planned: plan(input), failed: null };
  } catch (error) {
    const { code, message, details } = asSwitchyardError(error);
    return { planned: null, failed: { code, message, details } };
  }
}

parentPort!.postMessage(outcome(workerData as PlanInput));

import { parentPort, workerData } from 'node:worker_threads';
import type { PlanInput } from '../placement/input.js';
import { plan } from '../placement/plan.js';

// What is thrown here is an `error` event there.
parentPort!.postMessage(plan(workerData as PlanInput));

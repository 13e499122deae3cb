import { resolve } from 'node:path';
import { z } from 'zod';
import {
  addresses,
  advertisedHost,
  clientTokenFields,
  decimal,
  humanBytes,
  humanCount,
  nodeName,
  port,
  seed,
  serverFields,
  text,
  toggle,
} from '../common/config.js';
import { SwitchyardError } from '../common/errors.js';
import { expertWeightBytes, modelLimits } from '../model/limits.js';
import { parseModelSource } from '../model/load.js';
import type { ModelSource, SyntheticSpec } from '../model/spec.js';
import { type PresetName, presetNames, presets } from '../model/synthetic.js';
import { usualLimits } from '../placement/loading.js';
import { routerFields } from '../router/config.js';
import type { PlacementOptions } from './plans.js';

const override = (max: number) => humanCount(1, max).nullable().default(null);

/** Which model a cluster serves: a directory, or a preset with values of its own. */
export const modelFields = {
  preset: z
    .enum(presetNames as [PresetName, ...PresetName[]])
    .nullable()
    .default(null),
  model: text().nullable().default(null),
  /** Null: no, unless the coordinator's own section of a file says yes. */
  allowNonFiniteWeights: toggle().nullable().default(null),
  hidden: override(modelLimits.hidden),
  ffn: override(modelLimits.ffn),
  experts: override(modelLimits.experts),
  topK: override(modelLimits.topK),
  layers: override(modelLimits.layers),
  activation: z.enum(['swiglu', 'gelu']).nullable().default(null),
  seed: seed().nullable().default(null),
};

type ModelChoice = z.infer<z.ZodObject<typeof modelFields>>;

/** What is wrong with the sizes that a configuration gives a preset: a bound of one may depend on another. */
export function checkSizes(config: object, context: z.RefinementCtx): void {
  const { model, ...given } = config as ModelChoice;
  if (model !== null) return;
  const issue = choiceIssue(given) ?? expertIssue(given);
  if (issue !== null) context.addIssue({ code: 'custom', path: [issue.key], message: issue.allowed });
}

type Sizes = Omit<ModelChoice, 'model'>;

const standardOf = ({ preset }: Sizes) => presets[preset ?? 'demo'].model;

function choiceIssue(sizes: Sizes): { key: string; allowed: string } | null {
  const standard = standardOf(sizes);
  const { topK, experts } = sizes;
  if ((topK ?? standard.topK) <= (experts ?? standard.experts)) return null;
  if (topK === null) return { key: 'experts', allowed: `at least ${standard.topK}, the experts of a token` };
  const allowed = `a whole number from 1 to ${experts ?? standard.experts}, the experts of a layer`;
  return { key: 'topK', allowed };
}

function expertIssue(sizes: Sizes): { key: string; allowed: string } | null {
  const standard = standardOf(sizes);
  const hidden = sizes.hidden ?? standard.hidden;
  const ffn = sizes.ffn ?? standard.ffn;
  const activation = sizes.activation ?? standard.activation;
  const bytesOf = (hidden: number, ffn: number) => expertWeightBytes({ hidden, ffn, activation });
  if (bytesOf(hidden, ffn) <= modelLimits.expertBytes) return null;
  const most = (perUnit: number) => Math.floor(modelLimits.expertBytes / perUnit);
  const [key, max] =
    sizes.ffn === null ? ['hidden', most(bytesOf(1, ffn))] : ['ffn', most(bytesOf(hidden, 1))];
  const allowed = `at most ${max} with the other sizes, for an expert has up to ${modelLimits.expertBytes} bytes`;
  return { key, allowed };
}

export const coordinatorSchema = z
  .object({
    ...serverFields,
    ...clientTokenFields,
    port: port().default(7070),
    metricsPort: port().default(7071),
    name: nodeName().default('coordinator'),
    advertiseHost: advertisedHost().nullable().default(null),
    ...modelFields,
    workers: humanCount(1, 65_536).default(1),
    topology: text().nullable().default(null),
    copies: humanCount(1, 64).default(1),
    replicaSlots: humanCount(0, 1_048_576).nullable().default(null),
    rebalanceSeconds: decimal(0, 86_400).default(60),
    rebalanceBytesPerSecond: humanBytes(1).default(usualLimits.bytesPerSecond),
    rebalanceLoads: humanCount(1, 65_536).default(usualLimits.loads),
    /** Embed a router, which the fields of routers configure. Lease and drain are those of the coordinator too. */
    router: toggle().default(true),
    ...routerFields,
    feedback: toggle().nullable().default(null),
    /** Larger steps overshoot: several chunks are gated before the bias that the first of them caused arrives. */
    feedbackRate: decimal(0, 1).default(0.005),
    feedbackWindow: humanCount(1, 2 ** 32).default(64),
    heartbeatMs: humanCount(10, 60_000).default(1_000),
    /** Where coordinators write down which of them leads; none: this is the only one. */
    lease: z.enum(['none', 'kubernetes', 'etcd']).default('none'),
    leaseName: leaseName().default('switchyard'),
    leaderLeaseMs: humanCount(1_000, 600_000).default(5_000),
    /** Members of etcd. */
    etcd: addresses().default(['127.0.0.1:2379']),
    etcdCa: text().nullable().default(null),
    etcdCert: text().nullable().default(null),
    etcdKey: text().nullable().default(null),
  })
  .superRefine(checkSizes);

export type CoordinatorConfig = z.infer<typeof coordinatorSchema>;

/** How copies of experts are placed, but for who makes the plans. */
export function placementOf(config: CoordinatorConfig): Omit<PlacementOptions, 'plan'> {
  const { workers, copies, replicaSlots, rebalanceSeconds, rebalanceBytesPerSecond, rebalanceLoads } = config;
  return { workers, copies, replicaSlots, rebalanceSeconds, rebalanceBytesPerSecond, rebalanceLoads };
}

/** As Kubernetes names objects. */
function leaseName() {
  const error =
    'a name of 1 to 63 small letters, digits and hyphens, which begins and ends with a letter or a digit';
  return z.string({ error }).regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/, { error });
}

const shapeKeys = ['hidden', 'ffn', 'experts', 'topK', 'layers', 'activation', 'seed'] as const;

/** The model that a configuration names; the preset `demo` if it names none. Throws CONFIG_INVALID or MODEL_INVALID. */
export function modelSourceOf(config: ModelChoice): ModelSource {
  const given = shapeKeys.filter((key) => config[key] !== null);
  if (config.model !== null) {
    const conflict = config.preset !== null ? 'preset' : given[0];
    if (conflict !== undefined) {
      throw new SwitchyardError(
        'CONFIG_INVALID',
        `${conflict} is ${JSON.stringify(config[conflict])}, and model is ${JSON.stringify(config.model)}; allowed: either a model directory, or a preset and its sizes`,
        { key: conflict, value: String(config[conflict]) },
      );
    }
    const allowNonFiniteWeights = config.allowNonFiniteWeights ?? false;
    return parseModelSource({ kind: 'checkpoint', directory: resolve(config.model), allowNonFiniteWeights });
  }
  const spec: SyntheticSpec = { ...presets[config.preset ?? 'demo'].model };
  return parseModelSource({
    kind: 'synthetic',
    spec: { ...spec, ...Object.fromEntries(given.map((key) => [key, config[key]])) },
  });
}

/** Heartbeats must come several times within a lease. Throws CONFIG_INVALID. */
export function checkTimes({ leaseMs, heartbeatMs }: CoordinatorConfig): void {
  if (heartbeatMs * 2 <= leaseMs) return;
  throw new SwitchyardError(
    'CONFIG_INVALID',
    `heartbeatMs is ${heartbeatMs}; allowed: at most half of leaseMs, ${leaseMs / 2}`,
    { key: 'heartbeatMs', value: heartbeatMs, allowed: leaseMs / 2 },
  );
}

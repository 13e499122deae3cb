import { z } from 'zod';
import type { ClusterDescription, SwitchyardClient } from '../client/index.js';
import { readBounded } from '../common/bounded-file.js';
import { callSizes } from '../common/call-sizes.js';
import { nodeName } from '../common/config.js';
import { SwitchyardError, shownJson } from '../common/errors.js';
import { listCopies } from '../common/expert-copies.js';
import type { FfnModel } from '../common/generated/switchyard/v1/FfnModel.js';
import type { LayerModel } from '../common/generated/switchyard/v1/LayerModel.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import { sleep } from '../common/lifecycle.js';
import type { OutputFile } from '../common/output-file.js';
import { checkBy } from '../common/schema-issue.js';
import { shownText } from '../common/shown-text.js';
import { expertBytesOn } from '../model/device-bytes.js';
import { modelLimits, size } from '../model/limits.js';
import { usualLimits } from '../placement/loading.js';

const fileBytesMax = 64 * 1024 * 1024;
/** Tokens of a layer whose experts are kept. */
export const tokensSampledMax = 1024;
const workersMax = 4096;
const format = 'switchyard-recording';
/** Those of version 1 do not tell how fast workers compute calls of like size. */
const version = 2;

/** What is possible, with room to spare: nothing that is reckoned from these is too large or too small for a number. */
const limits = {
  rate: { min: 1e-3, max: 1e15 },
  seconds: { min: 1e-6, max: 1e9 },
  bytes: { min: 0, max: 1e18 },
  /** Of the coordinator, whose setting is a whole number of bytes. */
  bytesPerSecond: { min: 1e-3, max: Number.MAX_SAFE_INTEGER },
  /** Standard errors of a rate, as a multiple of it. */
  errorFactor: 10,
} as const;

const sizesAllowed = 'sizes with ascending rows';
const between = ({ min, max }: { min: number; max: number }, also = '') => {
  const error = `a number from ${min} to ${max}${also}`;
  return z.number({ error }).min(min, { error }).max(max, { error });
};
const rate = () => between(limits.rate, ', or null').nullable();
const index = (below: number) => {
  const error = `an integer from 0 to ${below - 1}`;
  return z
    .int({ error })
    .min(0, { error })
    .max(below - 1, { error });
};

const sizeSchema = z
  .strictObject({
    /** The fewest of one call. */
    rows: size(2 ** 32),
    rowsPerSecond: between(limits.rate),
    /** Standard error of that. */
    error: z.number(),
  })
  .superRefine(({ rowsPerSecond, error }, { addIssue }) => {
    const max = limits.errorFactor * rowsPerSecond;
    if (error >= 0 && error <= max) return;
    const message = `a number from 0 to ${max}, ${limits.errorFactor} times rowsPerSecond`;
    addIssue({ code: 'custom', path: ['error'], message });
  });

const workerSchema = z.strictObject({
  name: nodeName(),
  host: shownText(1, 253),
  device: shownText(1, 253),
  /** What its experts may take. */
  memoryBytes: between(limits.bytes),
  /** Null: not measured. */
  rowsPerSecond: rate(),
  /** By size of calls, as far as that was measured often enough: workers are compared by these alone. */
  sizes: z
    .array(sizeSchema)
    .max(callSizes)
    .refine((sizes) => isAscending(sizes.map(({ rows }) => rows)), { error: sizesAllowed }),
  loadBytesPerSecond: rate(),
});

const layerSchema = z.strictObject({
  layer: index(2 ** 32),
  expertBytes: size(modelLimits.expertBytes),
  /** What an expert takes of a CUDA device; absent in older recordings: the same. */
  expertBytesOnCuda: size(2 * modelLimits.expertBytes).optional(),
  /** By expert, within `seconds`. */
  rows: z
    .array(index(2 ** 53))
    .min(1)
    .max(modelLimits.experts),
  /** By expert: the workers that hold it, as indices, ascending. */
  workersOf: z.array(z.array(index(workersMax)).max(workersMax)),
  /** Expert after expert of a sample of tokens; null: none was taken. */
  choices: z
    .array(index(modelLimits.experts))
    .max(tokensSampledMax * modelLimits.topK)
    .nullable(),
});

const recordingSchema = z
  .strictObject({
    format: z.literal(format, { error: format }),
    version: z.literal(version, { error: `${version}; a recording of another version must be made anew` }),
    model: shownText(0, 1024),
    hidden: size(modelLimits.hidden),
    topK: size(modelLimits.topK),
    /** Of the coordinator: copies of experts that serve already which it loads at once, and bytes of them a second. */
    rebalanceLoads: size(65_536),
    rebalanceBytesPerSecond: between(limits.bytesPerSecond),
    /** What the rows of the layers were counted over. */
    seconds: between(limits.seconds),
    workers: z.array(workerSchema).min(1).max(workersMax),
    layers: z.array(layerSchema).min(1).max(modelLimits.layers),
  })
  .superRefine(({ workers, layers, topK }, { addIssue }) => {
    const names = workers.map((worker) => worker.name);
    const again = names.findIndex((name, at) => names.indexOf(name) < at);
    if (again >= 0)
      addIssue({ code: 'custom', path: ['workers', again, 'name'], message: 'a name of no other worker' });
    const numbers = new Set<number>();
    let sum = 0;
    for (const [at, { layer, rows, workersOf, choices }] of layers.entries()) {
      const wrong = (key: string, message: string) =>
        addIssue({ code: 'custom', path: ['layers', at, key], message });
      if (numbers.has(layer)) wrong('layer', 'a number of no other layer');
      numbers.add(layer);
      for (const count of rows) sum += count;
      if (workersOf.length !== rows.length) wrong('workersOf', `${rows.length} entries, as rows has`);
      if (!workersOf.every((holders) => isAscending(holders) && (holders.at(-1) ?? 0) < workers.length))
        wrong('workersOf', `lists of indices of the ${workers.length} workers, ascending`);
      if (choices && (choices.length % topK > 0 || choices.some((expert) => expert >= rows.length)))
        wrong('choices', `${topK} numbers below ${rows.length} for each token`);
    }
    if (sum === 0)
      addIssue({
        code: 'custom',
        path: ['layers', 0, 'rows'],
        message: 'one number above 0 at least, here or in another layer',
      });
  });

/** What the experts of a cluster had to do for some time, and where they were: all that a plan is made of. */
export type Recording = z.infer<typeof recordingSchema>;
/** One before the rows of its layers are known. */
export type RecordedCluster = Omit<Recording, 'seconds' | 'layers'> & {
  layers: Omit<Recording['layers'][number], 'rows' | 'choices'>[];
};

const isAscending = (list: readonly number[]) => list.every((value, at) => at === 0 || value > list[at - 1]!);

/** Throws CONFIG_INVALID that names the file, the key, the value and what is allowed. */
export function readRecording(path: string): Recording {
  const invalid = (key: string, problem: string) =>
    new SwitchyardError('CONFIG_INVALID', `${path}: ${key} ${problem}`, { file: path, key });
  let json: unknown;
  try {
    json = JSON.parse(readBounded(path, fileBytesMax).toString());
  } catch (error) {
    throw invalid('recording', `cannot be read as JSON: ${(error as Error).message}`);
  }
  const { data, issue } = checkBy(recordingSchema, json);
  if (issue === null) return data;
  throw invalid(issue.key || 'recording', `is ${shownJson(issue.value)}; allowed: ${issue.allowed}`);
}

/** Throws CONFIG_INVALID if the file's recording is of another model than the cluster's: its rows and choices say nothing of that one's experts. */
export function checkModel(path: string, recording: Recording, model: ModelDescription): void {
  const check = (key: string, value: unknown, clusters: readonly unknown[]) => {
    if (clusters.includes(value)) return;
    const allowed = `${clusters.map(shownJson).join(', ')}, as the cluster's model has it`;
    const text = `${path}: ${key} is ${shownJson(value)}; allowed: ${allowed}`;
    throw new SwitchyardError('CONFIG_INVALID', text, { file: path, key });
  };
  check('model', recording.model, [model.name]);
  check('hidden', recording.hidden, [model.hidden]);
  check('topK', recording.topK, [topKOf(model)]);
  const numbers = model.layers.map(({ layer }) => layer);
  for (const [at, { layer, expertBytes, rows }] of recording.layers.entries()) {
    const of = (key: string) => `layers.${at}.${key}`;
    check(of('layer'), layer, numbers);
    check(of('expertBytes'), expertBytes, [Number(model.expertBytes)]);
    check(`the length of ${of('rows')}`, rows.length, [model.layers[numbers.indexOf(layer)]!.experts]);
  }
}

/** The load of a recording on a cluster: layers that were not recorded have none. */
export function loadOn(cluster: RecordedCluster, { seconds, layers }: Recording): Recording {
  return {
    ...cluster,
    seconds,
    layers: cluster.layers.map((layer) => {
      const recorded = layers.find((one) => one.layer === layer.layer);
      const rows = recorded?.rows ?? layer.workersOf.map(() => 0);
      return { ...layer, rows, choices: recorded?.choices ?? null };
    }),
  };
}

const topKOf = ({ routing }: ModelDescription) => routing?.topK ?? 1;

export async function writeRecording(file: OutputFile, recording: Recording): Promise<void> {
  await file.write(Buffer.from(`${JSON.stringify(recording)}\n`));
  await file.close();
}

/** Workers tell what they computed within a second, and routers hear of it within another. */
const measuredMsMax = 5_000;
const pollMs = 200;

/** The cluster with its placement, as soon as one worker has told how fast it computes, or nothing came for a while. */
export async function describeMeasured(client: SwitchyardClient): Promise<ClusterDescription> {
  for (const end = performance.now() + measuredMsMax; ; await sleep(pollMs)) {
    const cluster = await client.describeCluster({ placement: true });
    const isMeasured = cluster.view?.nodes.some(({ figures }) => (figures?.computeSeconds ?? 0) > 0);
    if (isMeasured || performance.now() >= end) return cluster;
  }
}

/** The live workers of a cluster, described with its placement. Throws NOT_READY as long as no expert is placed. */
export function recordCluster({ view, model }: ClusterDescription): RecordedCluster {
  const placement = view?.placement;
  if (!view?.epoch || !placement || !model)
    throw new SwitchyardError('NOT_READY', `no expert is placed yet: ${view?.reason ?? 'no view has come'}`);
  const nodes = view.nodes.filter(
    ({ role, state }) => role === 'WORKER' && state !== 'DEAD' && state !== 'DRAINING',
  );
  nodes.sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }));
  const indexOf = placement.workers.map((worker) => nodes.findIndex(({ name }) => name === worker));
  const expertBytes = Number(model.expertBytes);
  const expertBytesOnCuda = expertBytesOn('cuda', {
    ...model,
    expertBytes,
    layers: model.layers.map(sizesOf),
  });
  return {
    format,
    version,
    model: model.name,
    hidden: model.hidden,
    topK: topKOf(model),
    rebalanceLoads: view.rebalanceLoads || usualLimits.loads,
    rebalanceBytesPerSecond: view.rebalanceBytesPerSecond || usualLimits.bytesPerSecond,
    workers: nodes.map(({ name, host, device, memoryBytes, figures }) => ({
      name,
      host,
      device,
      memoryBytes,
      rowsPerSecond: figures?.computeSeconds ? figures.rowsComputed / figures.computeSeconds || null : null,
      sizes: figures?.sizes ?? [],
      loadBytesPerSecond: figures?.load?.bytesPerSecond || null,
    })),
    layers: placement.layers.map((layer) => ({
      layer: layer.layer,
      expertBytes,
      expertBytesOnCuda,
      workersOf: listCopies(layer).map((workers) =>
        workers
          .map((worker) => indexOf[worker]!)
          .filter((worker) => worker >= 0)
          .sort((a, b) => a - b),
      ),
    })),
  };
}

function sizesOf({ expert, isolated, shared }: LayerModel) {
  const sizes = (form: FfnModel | null) => {
    const { ffn, activation, latent } = form!;
    const width = latent > 0 ? { latent } : {};
    return { ffn, activation: activation.toLowerCase() as Lowercase<typeof activation>, ...width };
  };
  return {
    expert: sizes(expert),
    isolated: isolated && { expert: sizes(isolated.expert) },
    shared: shared.map(({ ffn }) => sizes(ffn)),
  };
}

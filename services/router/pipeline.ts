import { type CombinePart, native, type Slab } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import { until } from '../common/trace.js';
import { groupLimits } from '../transport/limits.js';
import type { Stage } from './account.js';
import type { Control } from './control.js';
import { choicesAt, type DispatchContext, dispatch, requireLinks, requirePlaced } from './dispatch.js';
import type { InputChunk } from './ingest.js';
import type { BatchPlan } from './plan.js';
import type { RouterReporter } from './report.js';
import {
  allocateRouting,
  gatherRouting,
  type LayerRouting,
  type RoutingRows,
  scatterRouting,
} from './routing-rows.js';

export interface PipelineContext extends DispatchContext {
  control: Control;
  reporter: RouterReporter;
}

/** A chunk that passed all layers. The receiver owns the rows. */
export interface OutputChunk {
  offset: number;
  tokens: number;
  rows: Slab;
  /** Rows that hold NaN or infinity. */
  nonFinite: number;
  /** If the batch asked for it. */
  routing: RoutingRows | null;
}

/**
 * The way of one chunk through the layers: norm, gate, group, dispatch, combine, and on to the next layer at once.
 * Chunks know nothing of each other, so there is no barrier between layers or chunks.
 * Takes over `chunk.rows`; its reservation stays with the caller.
 */
export async function runChunk(chunk: InputChunk, context: PipelineContext): Promise<OutputChunk> {
  const { plan, signal } = context;
  const returned = plan.returnRouting ? (chunk.given ?? allocateRouting(plan, chunk.tokens)) : null;
  let { rows, nonFinite } = chunk;
  try {
    for (let index = 0; index < plan.layers.length; index += 1) {
      signal.throwIfAborted();
      const next = await runLayer(chunk, rows, index, returned, context);
      rows.release();
      ({ rows, nonFinite } = next);
      if (nonFinite > 0 && plan.refuseNonFinite) await refuseNonFinite(chunk, rows, nonFinite, index, plan);
    }
  } catch (error) {
    rows.release();
    throw error;
  }
  return { offset: chunk.offset, tokens: chunk.tokens, rows, nonFinite, routing: returned };
}

async function runLayer(
  chunk: InputChunk,
  rows: Slab,
  layerIndex: number,
  returned: RoutingRows | null,
  context: PipelineContext,
): Promise<{ rows: Slab; nonFinite: number }> {
  const { plan, signal } = context;
  const { layer } = plan.layers[layerIndex]!;
  const normed = plan.norm ? await normalize(chunk, rows, layer, context) : rows;
  let routing: LayerRouting;
  let parts: CombinePart[];
  const placement = context.control.placement!;
  try {
    signal.throwIfAborted();
    routing = chunk.given
      ? gatherRouting(chunk.given, plan, layerIndex)
      : await gate(chunk, normed, layer, context);
    if (returned !== null && chunk.given === null) scatterRouting(routing, returned, plan, layerIndex);
    const workerOf = requirePlaced(placement, layer, plan.layers[layerIndex]!.experts);
    context.account.routed(chunk, layer, routing.counts, placement);
    context.metrics.routed(layer, routing.counts, placement);
    const target = { chunk: chunk.index, layer, placement };
    const links = await requireLinks(routing.counts, target, context.links);
    signal.throwIfAborted();
    const groups = await timed('group', chunk, layer, context, () =>
      native.groupRows({
        rowCount: chunk.tokens,
        topK: plan.topK,
        experts: routing.experts,
        weights: routing.weights,
        workerOf,
        workers: placement.workers.length,
        limits: groupLimits(links, choicesAt(placement, layer, plan.topK), plan),
      }),
    );
    parts = await dispatch(groups, links, normed, target, context);
  } finally {
    if (normed !== rows) normed.release();
  }
  try {
    return await timed('combine', chunk, layer, context, () =>
      native.combineRows({
        mode: plan.combine,
        rowCount: chunk.tokens,
        hidden: plan.hidden,
        topK: plan.topK,
        weights: plan.combine === 'exact' && !plan.weighsInput ? routing.weights : null,
        residual: plan.residual ? rows : null,
        parts,
      }),
    );
  } finally {
    for (const part of parts) part.rows.release();
  }
}

/** Throws NON_FINITE for the first row that a layer made NaN or infinite; what came in was finite. */
async function refuseNonFinite(
  { offset, tokens }: InputChunk,
  rows: Slab,
  count: number,
  layerIndex: number,
  { layers, hidden }: BatchPlan,
): Promise<never> {
  const { layer } = layers[layerIndex]!;
  const token = offset + (await native.findNonFinite(rows, 0, tokens, hidden))!;
  throw new SwitchyardError(
    'NON_FINITE',
    `the output of layer ${layer} holds NaN or infinity in token ${token}, the first of ${count} among tokens ${offset} to ${offset + tokens - 1}; allowed: finite values, as options.refuse_non_finite is set`,
    { token, layer, allowed: 'finite values' },
  );
}

function normalize(chunk: InputChunk, rows: Slab, layer: number, context: PipelineContext): Promise<Slab> {
  const weights = context.control.weights!;
  return timed('norm', chunk, layer, context, () =>
    native.normalizeRows({
      rows,
      rowCount: chunk.tokens,
      hidden: context.plan.hidden,
      weight: weights.layer(layer).norm,
      epsilon: weights.spec.normEpsilon,
    }),
  );
}

async function gate(
  chunk: InputChunk,
  rows: Slab,
  layer: number,
  context: PipelineContext,
): Promise<LayerRouting> {
  const { plan, control } = context;
  const result = await timed('gate', chunk, layer, context, () =>
    native.gateRows({
      gate: control.weights!.layer(layer).gate,
      rows,
      rowCount: chunk.tokens,
      bias: plan.feedback ? (control.bias.get(layer) ?? null) : null,
    }),
  );
  // Only what the bias can steer counts in the loop that makes it.
  if (plan.feedback) context.reporter.countRows(layer, result.counts);
  return result;
}

async function timed<T>(
  stage: Stage & keyof PipelineContext['metrics']['seconds'],
  chunk: InputChunk,
  layer: number,
  { plan, account, metrics, trace }: PipelineContext,
  run: () => Promise<T>,
): Promise<T> {
  const started = performance.now();
  const result = await run();
  const seconds = (performance.now() - started) / 1000;
  account.spend(stage, seconds);
  metrics.seconds[stage].observe(seconds);
  const details = { batch: plan.batchId, chunk: chunk.index, layer, rows: chunk.tokens };
  trace?.beside(stage, stage, until(seconds), details);
  return result;
}

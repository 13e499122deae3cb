import type { RoutedRows, RoutingTable, RowGroup, Slab } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import { until } from '../common/trace.js';
import type { Span } from '../runtime/tracer.js';
import type { Link } from '../transport/link.js';
import type { Stage } from './account.js';
import type { Destination } from './destinations.js';
import type { InputChunk } from './ingest.js';
import { Ledger, type LedgerContext } from './ledger.js';
import type { PlacementIndex } from './placement.js';
import type { RouterReporter } from './report.js';
import { createRoutingTable } from './routing-table.js';
import type { RowWork } from './row-work.js';

export interface PipelineContext extends LedgerContext {
  reporter: RouterReporter;
  /** Of the batch; null: it is not traced. */
  span: Span | null;
  /** The rows that this router has at hand. */
  work: RowWork;
}

/** A chunk that passed all layers. The receiver owns rows and routing. */
export interface OutputChunk {
  offset: number;
  tokens: number;
  rows: Slab;
  /** Rows that hold NaN or infinity. */
  nonFinite: number;
  /** If the batch asked for it. */
  routing: RoutingTable | null;
}

/**
 * The way of one chunk through the layers: route, dispatch, combine, and on to the next layer at once.
 * Chunks know nothing of each other, so there is no barrier between layers or chunks.
 * Takes over rows and given routing of the chunk; its reservation stays with the caller.
 */
export async function runChunk(chunk: InputChunk, context: PipelineContext): Promise<OutputChunk> {
  const { plan, runtime } = context;
  const span = context.span?.begin('chunk', { chunk: chunk.index, tokens: chunk.tokens }) ?? null;
  let table = chunk.given;
  try {
    if (table === null && plan.returnRouting) table = createRoutingTable(runtime.rows, plan, chunk.tokens);
    const { rows, nonFinite } = await runLayers(chunk, table, span, context);
    const routing = plan.returnRouting ? table : null;
    if (routing !== null) table = null;
    return { offset: chunk.offset, tokens: chunk.tokens, rows, nonFinite, routing };
  } finally {
    table?.release();
    span?.end();
  }
}

/** No link is avoided before it has refused. */
const nobody: ReadonlySet<Link> = new Set();

/** Rows that passed a layer. */
interface LayerOutput {
  rows: Slab;
  nonFinite: number;
}

/** A chunk on its way through one layer. */
interface LayerPass {
  chunk: InputChunk;
  table: RoutingTable | null;
  /** The input of the layer. */
  rows: Slab;
  layer: number;
  /** The layer's place among those of the batch. */
  index: number;
  /** The map that is used from start to end. */
  placement: PlacementIndex;
  /** Null: it is not traced. */
  span: Span | null;
}

async function runLayers(
  chunk: InputChunk,
  table: RoutingTable | null,
  chunkSpan: Span | null,
  context: PipelineContext,
): Promise<LayerOutput> {
  const { plan, signal, cluster } = context;
  let output: LayerOutput = { rows: chunk.rows, nonFinite: 0 };
  try {
    for (const [index, { layer }] of plan.layers.entries()) {
      signal.throwIfAborted();
      const { rows } = output;
      const span = chunkSpan?.begin('layer', { layer }) ?? null;
      const pass: LayerPass = { chunk, table, rows, layer, index, placement: cluster.placement!, span };
      output = await runLayer(pass, context).finally(() => span?.end());
      rows.release();
      if (output.nonFinite > 0 && plan.refuseNonFinite) await refuseOutput(pass, output, context);
    }
  } catch (error) {
    output.rows.release();
    throw error;
  }
  return output;
}

async function runLayer(pass: LayerPass, context: PipelineContext): Promise<LayerOutput> {
  const { chunk, rows, layer, placement } = pass;
  const { cluster, destinations, plan, signal } = context;
  let routed: RoutedRows | null = null;
  let results: Promise<(Slab | null)[]>;
  cluster.placements.inUse.enter(placement);
  try {
    const destination = destinations.find(placement, layer, plan, nobody);
    routed = await atHand(pass, context, route(pass, destination, context));
    await account(routed, pass, context);
    signal.throwIfAborted();
    const got = (groups: readonly RowGroup[], { term }: PlacementIndex) => {
      // Within a term indices of workers stay.
      if (term === placement.term) count(groups, pass, context);
    };
    const { span } = pass;
    const input = { routed, rows: routed.normed ?? rows, chunk: chunk.index, layer, destination, got, span };
    results = new Ledger(input, context).run();
  } catch (error) {
    routed?.normed?.release();
    routed?.release();
    throw error;
  } finally {
    // From here on it is used by what was sent.
    cluster.placements.inUse.leave(placement);
  }
  try {
    let parts: (Slab | null)[];
    try {
      parts = await results;
    } finally {
      routed.normed?.release();
    }
    return await combine(routed, parts, pass, context);
  } finally {
    routed.release();
  }
}

function route(
  { chunk, table, rows, layer, index }: LayerPass,
  destination: Destination,
  { plan, cluster, destinations, runtime }: PipelineContext,
): Promise<RoutedRows> {
  const weights = cluster.weights!.layer(layer);
  return runtime.rows.routeRows({
    rows,
    rowCount: chunk.tokens,
    hidden: plan.hidden,
    norm: plan.norm && weights.norm ? { ...weights.norm, epsilon: cluster.weights!.spec.normEpsilon } : null,
    gate: {
      weights: weights.gate,
      bias: plan.feedback ? (cluster.bias.get(layer) ?? null) : null,
      given: plan.given,
      tokenIds: chunk.tokenIds,
    },
    table: table && { routing: table, layer: index },
    ...destinations.targets(destination),
    weighted: plan.combine === 'partial' || plan.weighsInput,
  });
}

/** An operation on rows that this router does itself. */
function atHand<T>(
  { chunk, layer }: LayerPass,
  { plan, work }: PipelineContext,
  operation: Promise<T>,
): Promise<T> {
  return work.on({ batchId: plan.batchId, chunk: chunk.index, layer }, operation);
}

/** Counts what was routed. Throws NON_FINITE for tokens that came with NaN or infinity, if the batch refuses them. */
async function account(routed: RoutedRows, pass: LayerPass, context: PipelineContext): Promise<void> {
  const { plan, metrics, reporter } = context;
  const { layer } = pass;
  const { counts, nonFinite, seconds } = routed;
  context.account.routed(layer, counts);
  metrics.routed(layer, counts);
  count(routed.groups, pass, context);
  // Only what the bias can steer counts in the loop that makes it.
  const steered = plan.feedback && plan.layers[pass.index]!.vocabulary === 0;
  reporter.countRows(layer, counts, steered);
  if (plan.norm) spend('norm', seconds.norm, context);
  if (!plan.given) spend('gate', seconds.gate, context);
  spend('group', seconds.group, context);
  draw('route', seconds.norm + seconds.gate + seconds.group, pass, context);
  if (pass.index > 0) return;
  context.account.nonFiniteTokens += nonFinite;
  metrics.nonFiniteTokens.inc(nonFinite);
  if (nonFinite > 0 && plan.refuseNonFinite) await refuseInput(pass, context);
}

/** Counts the rows that workers get, also those that others get in their place. */
function count(
  groups: readonly RowGroup[],
  { chunk, layer, placement: { workers } }: LayerPass,
  { account, metrics }: PipelineContext,
): void {
  // Typed arrays ignore what is written beyond their end: who joined since then is not among the workers of the chunk's placement.
  const rows = new Float64Array(workers.length);
  for (const { worker, rowIndices } of groups) if (worker !== null) rows[worker]! += rowIndices.length;
  account.got(chunk, layer, { workers, rows });
  metrics.got(layer, { workers, rows });
}

/** Takes over the parts. */
async function combine(
  routed: RoutedRows,
  parts: readonly (Slab | null)[],
  pass: LayerPass,
  context: PipelineContext,
): Promise<LayerOutput> {
  const { plan, runtime } = context;
  const startedMs = runtime.clock.now();
  const weights = context.cluster.weights!;
  const { outputNorm } = weights.layer(pass.layer);
  try {
    const combined = runtime.rows.combineRows({
      routed,
      mode: plan.combine,
      hidden: plan.hidden,
      weighted: !plan.weighsInput,
      residual: plan.residual ? pass.rows : null,
      outputNorm: outputNorm && { weight: outputNorm, epsilon: weights.spec.normEpsilon },
      parts,
    });
    return await atHand(pass, context, combined);
  } finally {
    const seconds = (runtime.clock.now() - startedMs) / 1000;
    spend('combine', seconds, context);
    draw('combine', seconds, pass, context);
    for (const part of parts) part?.release();
  }
}

/** Throws NON_FINITE for the first token of a chunk that came with NaN or infinity. */
async function refuseInput({ chunk, rows }: LayerPass, { plan, runtime }: PipelineContext): Promise<never> {
  const token = chunk.offset + (await runtime.rows.findNonFinite(rows, 0, chunk.tokens, plan.hidden))!;
  throw new SwitchyardError(
    'NON_FINITE',
    `chunk.rows of token ${token} holds NaN or infinity; allowed: finite values, as options.refuse_non_finite is set`,
    { field: 'chunk.rows', token, allowed: 'finite values' },
  );
}

/** Throws NON_FINITE for the first row that a layer made NaN or infinite; what came in was finite. */
async function refuseOutput(
  { chunk: { offset, tokens }, layer }: LayerPass,
  { rows, nonFinite }: LayerOutput,
  { plan, runtime }: PipelineContext,
): Promise<never> {
  const token = offset + (await runtime.rows.findNonFinite(rows, 0, tokens, plan.hidden))!;
  throw new SwitchyardError(
    'NON_FINITE',
    `the output of layer ${layer} holds NaN or infinity in token ${token}, the first of ${nonFinite} among tokens ${offset} to ${offset + tokens - 1}; allowed: finite values, as options.refuse_non_finite is set`,
    { token, layer, allowed: 'finite values' },
  );
}

function spend(
  stage: Stage & keyof PipelineContext['metrics']['seconds'],
  seconds: number,
  { account, metrics }: PipelineContext,
): void {
  account.spend(stage, seconds);
  metrics.seconds[stage].observe(seconds);
}

/** Puts what has just ended into the trace. */
function draw(name: string, seconds: number, pass: LayerPass, { plan, trace }: PipelineContext): void {
  const { chunk, layer } = pass;
  const details = { batch: plan.batchId, chunk: chunk.index, layer, rows: chunk.tokens };
  trace?.beside(name, name, until(seconds), details);
  pass.span?.add(name, until(seconds), { rows: chunk.tokens });
}

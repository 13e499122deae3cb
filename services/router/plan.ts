import { batchIdAllowed, batchIdPattern } from '../common/batch-id.js';
import { invalidArgument, overLimit, SwitchyardError } from '../common/errors.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import {
  expertsPerToken,
  type LayerSpec,
  type ModelSpec,
  type TokenIdsUse,
  tokenIdsUseOf,
} from '../model/spec.js';
import type { Random } from '../runtime/random.js';
import {
  chunkTokensMax,
  chunkTokensMin,
  tokenIdBytes,
  tokensMax,
  usualChunkTokens,
} from '../transport/chunk-size.js';

/** A validated header: what is to be done with every token of a batch. */
export interface BatchPlan {
  batchId: string;
  tokens: number;
  hidden: number;
  /** Bytes of one token. */
  rowBytes: number;
  /** The layers with experts in the range asked for, ascending. Never empty. */
  layers: LayerSpec[];
  /** Experts of a token that the gate chooses. */
  topK: number;
  /** Those, and the shared experts that every token goes to. */
  slots: number;
  norm: boolean;
  residual: boolean;
  combine: 'exact' | 'partial';
  /** The gate's weight multiplies what goes into an expert, not what comes out. */
  weighsInput: boolean;
  /** Whether the feedback loop's bias takes part in the gate's choice, and the choice in the loop. */
  feedback: boolean;
  /** Every chunk carries its experts and weights. */
  given: boolean;
  /** Whether chunks carry the ids of their tokens; null: they must not. */
  tokenIds: TokenIdsUse | null;
  returnRouting: boolean;
  refuseNonFinite: boolean;
  /** Tokens per chunk of the pipeline; the last one may be shorter. */
  chunkTokens: number;
  /** Milliseconds from receipt; 0: none. */
  deadlineMs: number;
}

/** What bounds a plan: the model that is served and the router's own limits. */
export interface PlanLimits {
  model: ModelSpec;
  /** Feedback unless the batch says otherwise. */
  feedback: boolean;
  /** The most bytes that one chunk may need. */
  chunkBytesMax: number;
  /** Tokens per chunk unless the batch says otherwise; 0: by bytes. */
  chunkTokens: number;
  /** Bytes of rows and routing in one message of a client. */
  messageBytesMax: number;
  /** Whose limits these are, for errors. */
  node: string;
  /** Of which the id of a batch is made that has none. */
  random: Random;
}

const pageBytes = 4_096;

/** Checks every field of a header. Throws INVALID_ARGUMENT or UNKNOWN_LAYER, naming field, value and what is allowed. */
export function planBatch(header: ForwardHeader, limits: PlanLimits): BatchPlan {
  const { model } = limits;
  const tokens = checkShape(header, model);
  const layers = checkLayers(header, model);
  const options = header.options;
  const given = oneOf('options.routing', options?.routing ?? 'GATE', ['GATE', 'GIVEN']) === 'GIVEN';
  const toggle = (field: 'norm' | 'residual' | 'feedback', otherwise: boolean): boolean => {
    const value = oneOf(`options.${field}`, options?.[field] ?? 'DEFAULT', ['DEFAULT', 'ON', 'OFF']);
    return value === 'DEFAULT' ? otherwise : value === 'ON';
  };
  /** What stands around the block, where the model's layers are so. */
  const around = (field: 'norm' | 'residual'): boolean => {
    const on = toggle(field, !model.bare);
    if (!on || !model.bare) return on;
    const allowed = `OFF: layers of ${model.family} are not x + MoE(RMSNorm(x)), and only the block is served`;
    throw invalidArgument(`options.${field}`, 'ON', allowed);
  };
  const combine = oneOf('options.combine', options?.combine ?? 'EXACT', ['EXACT', 'PARTIAL']);
  const plan: BatchPlan = {
    batchId: checkBatchId(header.batchId, limits.random),
    tokens,
    hidden: model.hidden,
    rowBytes: model.hidden * 2,
    layers,
    topK: model.topK,
    slots: expertsPerToken(model),
    norm: around('norm'),
    residual: around('residual'),
    combine: combine === 'EXACT' ? 'exact' : 'partial',
    weighsInput: model.weighsInput,
    feedback: toggle('feedback', limits.feedback) && !given,
    given,
    tokenIds: given ? null : tokenIdsUseOf(layers),
    returnRouting: options?.returnRouting ?? false,
    refuseNonFinite: options?.refuseNonFinite ?? false,
    chunkTokens: 0,
    deadlineMs: header.deadlineMs,
  };
  checkMessage(plan, limits);
  return { ...plan, chunkTokens: chooseChunkTokens(options?.chunkTokens ?? 0, plan, limits) };
}

/**
 * Bytes that a chunk needs on its whole way. At its widest a layer holds the chunk's rows, and beside them
 * the results (one row per expert of a token) and the sum. Packed rows are never more than the results they
 * turn into, and are gone when those arrive. An eighth is added for the rounding of slabs.
 */
export function chunkBytes(plan: BatchPlan, tokens: number): number {
  const rows = outputBytes(plan, tokens);
  const routing = plan.given || plan.returnRouting ? plan.layers.length : 1;
  return rows * (2 + plan.slots) + tokens * (plan.slots * routing * 8 + idBytes(plan));
}

/** Bytes of one token's id in a message, where it may have one. */
function idBytes({ tokenIds }: BatchPlan): number {
  return tokenIds === null ? 0 : tokenIdBytes;
}

/** Bytes of one token's experts and weights in a message, at all layers of the plan. */
export function routingBytes({ layers, topK }: BatchPlan): number {
  return layers.length * topK * 8;
}

/** Bytes that a chunk needs while its answer waits for the client. */
export function outputBytes(plan: BatchPlan, tokens: number): number {
  return Math.ceil((tokens * plan.rowBytes * 9) / 8 / pageBytes) * pageBytes;
}

function checkBatchId(batchId: string, random: Random): string {
  if (batchId === '') return random.uuid();
  if (!batchIdPattern.test(batchId)) {
    throw invalidArgument('batch_id', batchId.slice(0, 160), batchIdAllowed);
  }
  return batchId;
}

function checkShape(header: ForwardHeader, model: ModelSpec): number {
  const { sequences, length, hidden } = header;
  if (sequences < 1) throw invalidArgument('sequences', sequences, 'at least 1');
  if (length < 1) throw invalidArgument('length', length, 'at least 1');
  const tokens = sequences * length;
  if (tokens > tokensMax) {
    throw invalidArgument('sequences x length', tokens, `at most ${tokensMax} tokens in a batch`);
  }
  if (hidden !== model.hidden) {
    throw invalidArgument('hidden', hidden, `${model.hidden}, as model ${model.name} has it`);
  }
  if (header.dtype !== 'BF16') throw invalidArgument('dtype', header.dtype, 'BF16');
  return tokens;
}

function checkLayers(header: ForwardHeader, model: ModelSpec): LayerSpec[] {
  const last = model.layers.at(-1)!.layer;
  const from = header.firstLayer;
  const to = header.lastLayer ?? last;
  const unknown = (field: string, value: number | string): SwitchyardError => {
    const known = model.layers.map(({ layer }) => layer);
    const allowed = `a range up to ${last} that holds one of the layers with experts (${ranges(known)})`;
    return new SwitchyardError('UNKNOWN_LAYER', `${field} is ${value}; allowed: ${allowed}`, {
      field,
      value,
      allowed,
    });
  };
  if (from > last) throw unknown('first_layer', from);
  if (to > last) throw unknown('last_layer', to);
  if (to < from) throw invalidArgument('last_layer', to, `at least first_layer (${from})`);
  const layers = model.layers.filter(({ layer }) => layer >= from && layer <= to);
  if (layers.length === 0) throw unknown('first_layer to last_layer', `${from} to ${to}`);
  return layers;
}

/** One token, with its routing if that is given, or its id if it may have one, must fit into a message. */
function checkMessage(plan: BatchPlan, { messageBytesMax, node }: PlanLimits): void {
  const bytes = plan.rowBytes + (plan.given ? routingBytes(plan) : 0) + idBytes(plan);
  if (bytes <= messageBytesMax) return;
  throw overLimit('TOO_LARGE', 'bytes of one token', bytes, messageBytesMax, {
    setting: 'messageBytesMax',
    node,
  });
}

function chooseChunkTokens(asked: number, plan: BatchPlan, limits: PlanLimits): number {
  const perToken = chunkBytes(plan, chunkTokensMax) / chunkTokensMax;
  const fitting = Math.min(chunkTokensMax, Math.floor(limits.chunkBytesMax / perToken));
  const by = { setting: 'budgetBytes', node: limits.node };
  if (fitting < 1) {
    throw overLimit(
      'TOO_LARGE',
      'bytes of one token under way',
      Math.ceil(perToken),
      limits.chunkBytesMax,
      by,
    );
  }
  if (asked > chunkTokensMax) {
    throw invalidArgument('options.chunk_tokens', asked, `0 (the router's choice) to ${fitting}`);
  }
  if (asked > fitting) throw overLimit('TOO_LARGE', 'options.chunk_tokens', asked, fitting, by);
  if (asked > 0) return asked;
  if (limits.chunkTokens > 0) return Math.min(limits.chunkTokens, fitting);
  // A quarter of what a batch may hold, so that at least four chunks are under way at once.
  const quarter = Math.max(chunkTokensMin, fitting / 4);
  const chosen = Math.min(usualChunkTokens(plan.rowBytes), quarter, fitting);
  return 2 ** Math.floor(Math.log2(chosen));
}

function oneOf<T extends string>(field: string, value: T, allowed: readonly T[]): T {
  // An enum value that the protocol does not name arrives as a number.
  if (!allowed.includes(value)) throw invalidArgument(field, value, allowed.join(', '));
  return value;
}

/** "0-3, 5" for 0, 1, 2, 3, 5. */
function ranges(numbers: number[]): string {
  const parts: string[] = [];
  let start = 0;
  for (let index = 1; index <= numbers.length; index += 1) {
    if (index < numbers.length && numbers[index] === numbers[index - 1]! + 1) continue;
    const first = numbers[start]!;
    const last = numbers[index - 1]!;
    parts.push(first === last ? `${first}` : `${first}-${last}`);
    start = index;
  }
  return parts.join(', ');
}

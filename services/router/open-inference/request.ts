import type { RowDtype } from '../../../native/index.js';
import { invalidArgument } from '../../common/errors.js';
import type { InferParameter } from '../../common/generated/inference/InferParameter.js';
import type { ModelInferRequest } from '../../common/generated/inference/ModelInferRequest.js';
import type { ModelSpec } from '../../model/spec.js';
import { tokensMax } from '../../transport/chunk-size.js';
import { readInputs } from './inputs.js';
import { findModel, type ServedModel } from './models.js';
import { readOutputs, type WantedOutput } from './outputs.js';
import type { SharedRegions } from './regions.js';
import { type TensorMemory, tensorsOf } from './tensors.js';

/** A checked request. */
export interface InferencePlan {
  model: ServedModel;
  hidden: number;
  tokens: number;
  rows: { dtype: RowDtype; memory: TensorMemory };
  /** uint32 and float32 of every token; null: the router gates. */
  routing: { ids: TensorMemory; weights: TensorMemory } | null;
  /** int64 of every token; null: the request has none. */
  tokenIds: TensorMemory | null;
  /** Bytes of one token in each of the two. */
  routingBytes: number;
  /** In the order of the answer. */
  outputs: WantedOutput[];
  /** Milliseconds from receipt; 0: none. */
  deadlineMs: number;
}

/** What a request may refer to. */
export interface RequestContext {
  model: ModelSpec;
  regions: SharedRegions;
  /** host:port of the client. */
  peer: string;
  /** Gets what gives the regions back that the request uses. */
  held: (() => void)[];
}

/** Changes nothing: Triton's clients send it where they understand answers that are empty. */
const ignoredParameters = new Set(['triton_enable_empty_final_response']);

/** Checks a request. Throws INVALID_ARGUMENT, NOT_FOUND or PERMISSION_DENIED, naming field, value and what is allowed. */
export function planInference(request: ModelInferRequest, context: RequestContext): InferencePlan {
  const { hidden } = context.model;
  const model = findModel(context.model, request.modelName, request.modelVersion);
  const deadlineMs = readDeadline(request.parameters);
  const specs = tensorsOf(model, hidden);
  const inputs = readInputs(request, specs, context);
  const { hidden_states: rows, token_ids: tokenIds, topk_ids: ids, topk_weights: weights } = inputs;
  if (rows === undefined) {
    const given = request.inputs.map(({ name }) => name).join(', ') || 'none';
    throw invalidArgument('inputs', given, 'hidden_states among them');
  }
  if (ids && tokenIds) throw invalidArgument('inputs', 'token_ids and topk_ids', 'one of the two');
  if (model.tokenIds?.needed && !ids && !tokenIds) {
    const allowed = `one of the two, as layers of ${model.name} choose experts by ids of tokens`;
    throw invalidArgument('inputs', 'neither token_ids nor topk_ids', allowed);
  }
  if ((ids === undefined) !== (weights === undefined)) {
    throw invalidArgument('inputs', ids ? 'topk_ids alone' : 'topk_weights alone', 'both, or neither');
  }
  if (rows.tokens > tokensMax) throw invalidArgument('tokens', rows.tokens, `at most ${tokensMax}`);
  const dtype = rows.datatype as RowDtype;
  const outputs = readOutputs(request, { specs, leading: rows.leading, dtype }, context);
  return {
    model,
    hidden,
    tokens: rows.tokens,
    rows: { dtype, memory: rows.memory },
    routing: ids && weights ? { ids: ids.memory, weights: weights.memory } : null,
    tokenIds: tokenIds?.memory ?? null,
    routingBytes: model.routingShape.reduce((all, one) => all * one, 4),
    outputs,
    deadlineMs,
  };
}

/** Triton's `timeout`, in microseconds. */
function readDeadline(parameters: ModelInferRequest['parameters']): number {
  for (const [name, value] of Object.entries(parameters)) {
    if (name === 'timeout' || ignoredParameters.has(name)) continue;
    throw invalidArgument(`parameters.${name}`, shownParameter(value), 'no parameter but timeout');
  }
  const timeout = parameters.timeout;
  if (timeout === undefined) return 0;
  const microseconds = timeout.int64Param ?? timeout.uint64Param;
  if (microseconds === undefined || !(microseconds >= 0 && microseconds <= Number.MAX_SAFE_INTEGER)) {
    throw invalidArgument('parameters.timeout', shownParameter(timeout), 'microseconds, as an integer');
  }
  return Math.ceil(microseconds / 1000);
}

export function shownParameter(value: InferParameter): string | number | boolean {
  return value.parameterChoice === undefined ? 'nothing' : (value[value.parameterChoice] ?? 'nothing');
}

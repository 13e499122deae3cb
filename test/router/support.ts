import { native } from '../../native/index.js';
import type { ForwardHeader } from '../../services/common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardOptions } from '../../services/common/generated/switchyard/v1/ForwardOptions.js';
import type { ForwardRequest } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import type { ModelSpec } from '../../services/model/spec.js';
import { presets, syntheticModel } from '../../services/model/synthetic.js';
import type { ClientMessage } from '../../services/router/check-chunk.js';
import { type BatchPlan, type PlanLimits, planBatch } from '../../services/router/plan.js';
import { systemRandom } from '../../services/runtime/system.js';
import type { TransportKind } from '../../services/transport/link.js';
import { rowsOfMessage } from '../../services/transport/port.js';
import { collectGarbage } from '../support/garbage.js';

/** 16 hidden, 6 experts, top-2, 3 layers. */
export const smallModel: ModelSpec = syntheticModel({
  ...presets.tiny.model,
  name: 'small',
  hidden: 16,
  ffn: 32,
  experts: 6,
  topK: 2,
  layers: 3,
}).spec;

/** The same, whose last layer chooses experts by the ids of tokens. */
export const hashedModel: ModelSpec = {
  ...smallModel,
  layers: smallModel.layers.map((spec) => (spec.layer < 2 ? spec : { ...spec, vocabulary: 1000 })),
};

/** The same, whose last layer has 3 of its experts for the tokens 8 and 9 alone. */
export const isolatingModel: ModelSpec = {
  ...smallModel,
  layers: smallModel.layers.map((spec) =>
    spec.layer < 2 ? spec : { ...spec, isolated: { experts: 3, expert: spec.expert, tokenIds: [8, 9] } },
  ),
};

export const limits: PlanLimits = {
  model: smallModel,
  feedback: false,
  chunkBytesMax: 64 * 1024 * 1024,
  chunkTokens: 0,
  messageBytesMax: 1024 * 1024,
  node: 'router r',
  random: systemRandom,
};

export function options(fields: Partial<ForwardOptions> = {}): ForwardOptions {
  return {
    norm: 'DEFAULT',
    residual: 'DEFAULT',
    combine: 'EXACT',
    feedback: 'DEFAULT',
    routing: 'GATE',
    returnRouting: false,
    refuseNonFinite: false,
    chunkTokens: 0,
    ...fields,
  };
}

export function header(fields: Partial<ForwardHeader> = {}): ForwardHeader {
  return {
    batchId: 'batch',
    sequences: 4,
    length: 8,
    hidden: smallModel.hidden,
    dtype: 'BF16',
    firstLayer: 0,
    options: options(),
    deadlineMs: 0,
    ucx: null,
    ucxKey: Buffer.alloc(0),
    traceparent: '',
    ...fields,
  };
}

export function plan(fields: Partial<ForwardHeader> = {}, more: Partial<BatchPlan> = {}): BatchPlan {
  return { ...planBatch(header(fields), limits), ...more };
}

export function hashedPlan(fields: Partial<ForwardHeader> = {}, more: Partial<BatchPlan> = {}): BatchPlan {
  return { ...planBatch(header(fields), { ...limits, model: hashedModel }), ...more };
}

export function isolatingPlan(fields: Partial<ForwardHeader> = {}, more: Partial<BatchPlan> = {}): BatchPlan {
  return { ...planBatch(header(fields), { ...limits, model: isolatingModel }), ...more };
}

/** A message as it reaches the router: over gRPC with its rows in it, over UCX with its rows in a slab. */
export function arrived(
  request: ForwardRequest,
  over: TransportKind = 'grpc',
  taken = () => {},
): ClientMessage {
  const bytes = request.chunk?.rows ?? new Uint8Array(0);
  if (over === 'grpc' || bytes.byteLength === 0)
    return { request, rows: rowsOfMessage(bytes, native), taken };
  const slab = native.allocateSlab(bytes.byteLength);
  slab.view().set(bytes);
  return { request, rows: { kind: 'slab', slab, byteLength: bytes.byteLength }, taken };
}

/** Slab bytes that somebody still holds. Views keep memory until they are collected, so that is done first. */
export async function slabBytesHeld(): Promise<number> {
  let held = native.arenaStats().bytesInUse;
  for (let unchanged = 0; unchanged < 4 && held > 0; unchanged += 1) {
    collectGarbage();
    await new Promise((resolve) => setTimeout(resolve, 5));
    const { bytesInUse } = native.arenaStats();
    if (bytesInUse !== held) unchanged = 0;
    held = bytesInUse;
  }
  return held;
}

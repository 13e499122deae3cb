import type { Addon, RowDtype, SegmentRange, SlabRange } from '../../../native/index.js';
import { invalidArgument } from '../../common/errors.js';
import type { ModelInferRequest } from '../../common/generated/inference/ModelInferRequest.js';
import type { ModelInferResponseInput } from '../../common/generated/inference/ModelInferResponse.js';
import { type SharedContext, sharedMemoryOf } from './shared-parameters.js';
import {
  elementBytes,
  partOf,
  product,
  specOf,
  type TensorMemory,
  type TensorName,
  type TensorSpecs,
} from './tensors.js';

/** A tensor that a request asks for. */
export interface WantedOutput {
  name: TensorName;
  datatype: string;
  shape: number[];
  byteLength: number;
  /** Where the client wants it; null: in the answer. */
  shared: SegmentRange | null;
}

export interface OutputContext {
  specs: TensorSpecs;
  /** As the rows have it. */
  leading: number[];
  dtype: RowDtype;
}

/** What a request asks for: the rows, unless it names its outputs. Throws INVALID_ARGUMENT, naming field, value and what is allowed. */
export function readOutputs(
  request: ModelInferRequest,
  { specs, leading, dtype }: OutputContext,
  context: SharedContext,
): WantedOutput[] {
  const names = new Set<string>();
  const asked = request.outputs.length > 0 ? request.outputs : [{ name: 'hidden_states', parameters: {} }];
  return asked.map(({ name, parameters }, index) => {
    const spec = specOf(specs, name);
    if (!spec?.answered || names.has(name)) {
      const allowed = Object.values(specs).filter(({ answered }) => answered);
      const names = allowed.map(({ name }) => name).join(', ');
      throw invalidArgument(`outputs[${index}].name`, name, `${names}, each once`);
    }
    names.add(name);
    const datatype = spec.name === 'hidden_states' ? dtype : spec.datatype;
    const shape = [...leading, ...spec.tail];
    const byteLength = product(shape) * elementBytes(datatype);
    const shared = sharedMemoryOf(parameters, name, context);
    if (shared !== null && shared.byteLength < byteLength) {
      const allowed = `at least ${byteLength} bytes: ${shape.join(' x ')} ${datatype}`;
      throw invalidArgument(`${name}.parameters.shared_memory_byte_size`, shared.byteLength, allowed);
    }
    return { name: spec.name, datatype, shape, byteLength, shared };
  });
}

/** Part of a batch's result: the rows of consecutive tokens and their routing, if it was asked for. */
export interface ResultPart {
  /** In tokens. */
  offset: number;
  /** BF16 */
  rows: SlabRange;
  ids: Uint8Array;
  weights: Uint8Array;
}

/** The outputs of a request as they come to be: in memory for its answer, or where the client wants them. */
export class Outputs {
  private readonly targets: TensorMemory[];

  /** Takes memory of as many bytes as `messageBytes` says. */
  constructor(
    private readonly wanted: readonly WantedOutput[],
    private readonly tokens: number,
    private readonly native: Pick<Addon, 'widenRows' | 'writeSegment'>,
  ) {
    this.targets = wanted.map(({ shared, byteLength }) => shared ?? Buffer.allocUnsafeSlow(byteLength));
  }

  async write(part: ResultPart): Promise<void> {
    await Promise.all(this.wanted.map((output, index) => this.writeOne(output, this.targets[index]!, part)));
  }

  /** What the answer says of the outputs, and carries. */
  describe(): Pick<ModelInferResponseInput, 'outputs' | 'rawOutputContents'> {
    const empty = Buffer.alloc(0);
    return {
      outputs: this.wanted.map(({ name, datatype, shape }) => ({ name, datatype, shape })),
      rawOutputContents: this.targets.map((target) =>
        target instanceof Uint8Array ? (target as Buffer) : empty,
      ),
    };
  }

  private async writeOne(output: WantedOutput, memory: TensorMemory, part: ResultPart): Promise<void> {
    const perToken = output.byteLength / this.tokens;
    if (output.name === 'hidden_states') {
      const { slab, byteOffset, byteLength } = part.rows;
      const bytes = (byteLength / 2) * elementBytes(output.datatype);
      const target = partOf(memory, part.offset * perToken, bytes);
      return this.native.widenRows(slab, byteOffset, output.datatype as RowDtype, target);
    }
    const bytes = output.name === 'topk_ids' ? part.ids : part.weights;
    const target = partOf(memory, part.offset * perToken, bytes.byteLength);
    if (target instanceof Uint8Array) target.set(bytes);
    else await this.native.writeSegment(target.segment, target.byteOffset, bytes);
  }
}

/** Bytes of the outputs that the answer carries. */
export function messageBytes(wanted: readonly WantedOutput[]): number {
  return wanted.reduce((bytes, { shared, byteLength }) => bytes + (shared === null ? byteLength : 0), 0);
}

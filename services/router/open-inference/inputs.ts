import { invalidArgument, shownNumber } from '../../common/errors.js';
import type { InferTensorContents } from '../../common/generated/inference/InferTensorContents.js';
import type { ModelInferRequest } from '../../common/generated/inference/ModelInferRequest.js';
import { type SharedContext, sharedMemoryOf } from './shared-parameters.js';
import {
  elementBytes,
  product,
  rowDtypes,
  specOf,
  type TensorMemory,
  type TensorName,
  type TensorSpec,
  type TensorSpecs,
} from './tensors.js';

/** A tensor that a request gives, of the right shape and size. */
export interface InputTensor {
  datatype: string;
  /** The sizes in front of those of one token: [tokens] or [batch, tokens]. */
  leading: number[];
  tokens: number;
  memory: TensorMemory;
}

type Given = ModelInferRequest['inputs'][number];

/** The inputs of a request by their names. Throws INVALID_ARGUMENT, naming field, value and what is allowed. */
export function readInputs(
  request: ModelInferRequest,
  specs: TensorSpecs,
  context: SharedContext,
): Partial<Record<TensorName, InputTensor>> {
  const raw = [...request.rawInputContents];
  const inputs: Partial<Record<TensorName, InputTensor>> = {};
  for (const [index, given] of request.inputs.entries()) {
    const spec = specOf(specs, given.name);
    if (spec === undefined || inputs[spec.name] !== undefined) {
      const allowed = `${Object.keys(specs).join(', ')}, each once`;
      throw invalidArgument(`inputs[${index}].name`, given.name, allowed);
    }
    checkDatatype(given, spec);
    const leading = readLeading(given, spec);
    const tokens = product(leading);
    const bytes = tokens * product(spec.tail) * elementBytes(given.datatype);
    const shared = sharedMemoryOf(given.parameters, given.name, context);
    checkUntyped(given, shared !== null, request);
    const memory = shared ?? bytesOf(given, raw, request);
    if (memory.byteLength !== bytes) {
      const allowed = `${bytes} bytes: ${[...leading, ...spec.tail].join(' x ')} ${given.datatype}`;
      throw invalidArgument(`contents of ${given.name}`, `${memory.byteLength} bytes`, allowed);
    }
    inputs[spec.name] = { datatype: given.datatype, leading, tokens, memory };
  }
  if (raw.length > 0) {
    const allowed = 'one for each input that is not in shared memory';
    throw invalidArgument('raw_input_contents', `${request.rawInputContents.length} of them`, allowed);
  }
  checkSameLeading(inputs);
  return inputs;
}

function checkDatatype({ name, datatype }: Given, spec: TensorSpec): void {
  const allowed: readonly string[] = spec.name === 'hidden_states' ? rowDtypes : [spec.datatype];
  if (!allowed.includes(datatype)) throw invalidArgument(`datatype of ${name}`, datatype, allowed.join(', '));
}

function readLeading({ name, shape }: Given, { tail }: TensorSpec): number[] {
  const leading = shape.slice(0, shape.length - tail.length);
  const right =
    (leading.length === 1 || leading.length === 2) &&
    shape.every((size) => Number.isSafeInteger(size) && size >= 1) &&
    tail.every((size, index) => shape[leading.length + index] === size);
  if (right) return leading;
  const end = tail.map((size) => `, ${size}`).join('');
  const allowed = `[tokens${end}], [batch, tokens${end}]`;
  throw invalidArgument(`shape of ${name}`, `[${shape.map(shownNumber).join(', ')}]`, allowed);
}

/** Routing and ids are those of the rows. */
function checkSameLeading({
  hidden_states: rows,
  ...routing
}: Partial<Record<TensorName, InputTensor>>): void {
  for (const [name, tensor] of Object.entries(routing)) {
    const own = tensor.leading.join(', ');
    if (rows === undefined || own === rows.leading.join(', ')) continue;
    throw invalidArgument(
      `shape of ${name}`,
      `[${own}, ...]`,
      `[${rows.leading.join(', ')}, ...], as hidden_states has it`,
    );
  }
}

/** Throws INVALID_ARGUMENT for typed contents of a tensor that is elsewhere: one of the two would be passed over. */
function checkUntyped({ name, contents }: Given, isShared: boolean, request: ModelInferRequest): void {
  const typed = Object.entries(contents ?? {}).find(([, values]) => values.length > 0);
  if (typed === undefined || !(isShared || request.rawInputContents.length > 0)) return;
  const [field, values] = typed;
  const allowed = `none beside ${isShared ? 'shared memory' : 'raw_input_contents'}`;
  throw invalidArgument(`contents of ${name}`, `${values.length} values of ${field}`, allowed);
}

/** Bytes in the message: the next of the raw contents, or else typed ones. */
function bytesOf({ name, datatype, contents }: Given, raw: Buffer[], request: ModelInferRequest): Uint8Array {
  if (request.rawInputContents.length > 0) {
    const bytes = raw.shift();
    if (bytes !== undefined) return bytes;
    const allowed = 'one for each input that is not in shared memory';
    throw invalidArgument('raw_input_contents', `${request.rawInputContents.length} of them`, allowed);
  }
  return typedBytes(name, datatype, contents);
}

function typedBytes(name: string, datatype: string, contents: InferTensorContents | null): Uint8Array {
  if (contents !== null && datatype === 'FP32') return bytesOfArray(Float32Array.from(contents.fp32Contents));
  if (contents !== null && datatype === 'INT32') return bytesOfArray(Int32Array.from(contents.intContents));
  if (contents !== null && datatype === 'INT64') return bytesOfIntegers(name, contents.int64Contents);
  const typed = ['FP32', 'INT32', 'INT64'].includes(datatype);
  const allowed = typed ? 'raw_input_contents, or contents' : 'raw_input_contents';
  throw invalidArgument(
    `contents of ${name}`,
    contents === null ? 'missing' : `of datatype ${datatype}`,
    allowed,
  );
}

/** Larger ones came rounded. */
function bytesOfIntegers(name: string, values: readonly number[]): Uint8Array {
  const wrong = values.find((value) => !Number.isSafeInteger(value));
  if (wrong === undefined) return bytesOfArray(BigInt64Array.from(values, BigInt));
  const max = Number.MAX_SAFE_INTEGER;
  throw invalidArgument(`int64_contents of ${name}`, wrong, `${-max} to ${max}`);
}

function bytesOfArray({ buffer, byteLength }: Float32Array | Int32Array | BigInt64Array): Uint8Array {
  return new Uint8Array(buffer as ArrayBuffer, 0, byteLength);
}

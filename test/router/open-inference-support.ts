import { closeSync, ftruncateSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs';
import { Metadata, type ServiceError } from '@grpc/grpc-js';
import type { GRPCInferenceServiceClient } from '../../services/common/generated/inference/GRPCInferenceService.js';
import type { InferParameterInput } from '../../services/common/generated/inference/InferParameter.js';
import type { ModelInferRequestInput } from '../../services/common/generated/inference/ModelInferRequest.js';
import type { ModelInferResponse } from '../../services/common/generated/inference/ModelInferResponse.js';
import { connect } from '../../services/common/grpc-channel.js';
import type { Running } from '../../services/common/lifecycle.js';
import { clients } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { atEnd } from '../support/services.js';
import { rowBytes, shape, stateOf } from './cluster.js';

/** The name of the clusters' model. */
export const model = 'demo';

export function openInferenceOf({ address }: Pick<Running, 'address'>, token: string | null = null) {
  const client = connect(clients.OpenInference, address, { token, messageBytesMax: 64 * 1024 * 1024 });
  atEnd(() => client.close());
  return client;
}

/** Calls a method of one request and one answer; rejects with the SwitchyardError of the server. */
export function ask<Answer>(
  client: GRPCInferenceServiceClient,
  method: keyof GRPCInferenceServiceClient,
  request: object = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const call = client[method] as (
      request: object,
      metadata: Metadata,
      answer: (error: ServiceError | null, answer: Answer) => void,
    ) => void;
    call.call(client, request, new Metadata(), (error, answer) =>
      error === null ? resolve(answer) : reject(fromServiceError(error)),
    );
  });
}

export const infer = (client: GRPCInferenceServiceClient, request: ModelInferRequestInput) =>
  ask<ModelInferResponse>(client, 'ModelInfer', request);

interface OpenInferenceState {
  streams: number;
  regions: number;
  answers: { used: number };
}

/** What a router holds for clients of the protocol. */
export async function openInferenceState(router: Running): Promise<OpenInferenceState> {
  return ((await stateOf(router)) as unknown as { openInference: OpenInferenceState }).openInference;
}

/** A request for BF16 rows of the model, with `also` in it. */
export function requestOf(rows: Buffer, also: ModelInferRequestInput = {}): ModelInferRequestInput {
  const inputs = [
    { name: 'hidden_states', datatype: 'BF16', shape: [rows.byteLength / rowBytes, shape.hidden] },
  ];
  return { modelName: model, inputs, rawInputContents: [rows], ...also };
}

/** BF16 as float32. */
export function widened(rows: Buffer): Buffer {
  const floats = Buffer.alloc(rows.byteLength * 2);
  for (let index = 0; index < rows.byteLength; index += 2) rows.copy(floats, index * 2 + 2, index, index + 2);
  return floats;
}

export function parameters(values: Record<string, string | number>): Record<string, InferParameterInput> {
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => [
      name,
      typeof value === 'string' ? { stringParam: value } : { int64Param: value },
    ]),
  );
}

/** Where a tensor lies in a region. */
export function inRegion(region: string, byteSize: number, offset = 0) {
  return parameters({
    shared_memory_region: region,
    shared_memory_byte_size: byteSize,
    ...(offset > 0 && { shared_memory_offset: offset }),
  });
}

/** A segment of shared memory, as shm_open makes it; it is gone after the test. */
export class Segment {
  readonly key: string;
  private readonly path: string;
  private readonly descriptor: number;

  constructor(name: string, bytes: number) {
    this.key = `/switchyard-${process.pid}-${name}`;
    this.path = `/dev/shm${this.key}`;
    this.descriptor = openSync(this.path, 'wx+', 0o600);
    atEnd(() => {
      closeSync(this.descriptor);
      this.unlink();
    });
    this.resize(bytes);
  }

  resize(bytes: number): void {
    ftruncateSync(this.descriptor, bytes);
  }

  write(bytes: Uint8Array, offset = 0): void {
    writeSync(this.descriptor, bytes, 0, bytes.byteLength, offset);
  }

  read(byteLength: number, offset = 0): Buffer {
    const bytes = Buffer.alloc(byteLength);
    readSync(this.descriptor, bytes, 0, byteLength, offset);
    return bytes;
  }

  unlink(): void {
    try {
      unlinkSync(this.path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
}

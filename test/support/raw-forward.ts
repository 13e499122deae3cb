import { asSwitchyardError, type SwitchyardError } from '../../services/common/errors.js';
import type { ChunkInput } from '../../services/common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeaderInput } from '../../services/common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardRequestInput } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import type { ForwardSummary } from '../../services/common/generated/switchyard/v1/ForwardSummary.js';
import { connect } from '../../services/common/grpc-channel.js';
import { clients } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import type { TransportKind } from '../../services/transport/link.js';
import { type GrpcCall, UcxCall } from './ucx-call.js';

const messageBytesMax = 128 * 1024 * 1024;

export type RawOutcome =
  | { error: null; summary: ForwardSummary | null; rows: Buffer }
  | { error: SwitchyardError };

/**
 * Sends these messages to a router as they are, chunks over that transport, half-closes, and tells how the call ended. The SDK refuses most of what
 * is wrong before it is sent; another client would not. `rows` of the outcome are those of the answer in the order of
 * their tokens.
 */
export async function rawForward(
  address: string,
  messages: readonly ForwardRequestInput[],
  transport: TransportKind = 'grpc',
): Promise<RawOutcome> {
  const client = connect(clients.Inference, address, { token: null, messageBytesMax });
  try {
    const grpc = client.forward();
    const call = transport === 'grpc' ? grpc : (new UcxCall(grpc) as unknown as GrpcCall);
    for (const message of messages) call.write(message);
    call.end();
    const chunks: { offset: number; rows: Buffer }[] = [];
    let summary: ForwardSummary | null = null;
    for await (const response of call) {
      if (response.chunk) chunks.push(response.chunk);
      if (response.summary) summary = response.summary;
    }
    chunks.sort((a, b) => a.offset - b.offset);
    return { error: null, summary, rows: Buffer.concat(chunks.map(({ rows }) => rows)) };
  } catch (error) {
    return { error: asSwitchyardError(fromServiceError(error)) };
  } finally {
    client.close();
  }
}

export const header = (fields: ForwardHeaderInput): ForwardRequestInput => ({ header: fields });
export const chunk = (fields: ChunkInput): ForwardRequestInput => ({ chunk: fields });

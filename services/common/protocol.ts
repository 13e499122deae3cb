import { join } from 'node:path';
import { loadPackageDefinition } from '@grpc/grpc-js';
import {
  loadSync,
  type MessageTypeDefinition,
  type PackageDefinition,
  type ServiceDefinition,
} from '@grpc/proto-loader';
import { packageRoot } from '../../native/locate.js';
import { EncodedMessage, passEncoded } from './encoded-message.js';
import type { ProtoGrpcType } from './generated/client.js';
import type { ProtoGrpcType as InferenceGrpcType } from './generated/grpc_service.js';
import type { ChannelMessage, ChannelMessageInput } from './generated/switchyard/v1/ChannelMessage.js';
import type { ClusterStateInput } from './generated/switchyard/v1/ClusterState.js';
import type {
  CoordinatorMessage,
  CoordinatorMessageInput,
} from './generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeMessage, NodeMessageInput } from './generated/switchyard/v1/NodeMessage.js';
import type { RouterMessage, RouterMessageInput } from './generated/switchyard/v1/RouterMessage.js';
import type { SessionRequest, SessionRequestInput } from './generated/switchyard/v1/SessionRequest.js';
import type { SessionResponse, SessionResponseInput } from './generated/switchyard/v1/SessionResponse.js';
import type { WorkerMessage, WorkerMessageInput } from './generated/switchyard/v1/WorkerMessage.js';
import { placeRows, placeTensors } from './placed-rows.js';

/** A stream's messages as bytes and back, as one end needs it. */
export interface StreamCodec<Out, In> {
  serialize: (message: Out) => Buffer;
  deserialize: (bytes: Buffer) => In;
}

function loadProtocols(): PackageDefinition {
  const definition = loadSync(
    [
      ...['client', 'control', 'model', 'tokens'].map((name) => `switchyard/v1/${name}.proto`),
      'inference/grpc_service.proto',
    ],
    {
      includeDirs: [join(packageRoot(), 'proto')],
      longs: Number,
      enums: String,
      bytes: Buffer,
      defaults: true,
      oneofs: true,
    },
  );
  const { Forward, Session } = definition['switchyard.v1.Inference'] as ServiceDefinition;
  Forward!.requestSerialize = placeRows(Forward!.requestSerialize, 'chunk', 4);
  Forward!.responseSerialize = placeRows(Forward!.responseSerialize, 'chunk', 4);
  Session!.requestSerialize = placeRows(Session!.requestSerialize, 'batch', 5);
  Session!.responseSerialize = placeRows(Session!.responseSerialize, 'answer', 6);
  const { Exchange } = definition['switchyard.v1.Experts'] as ServiceDefinition;
  Exchange!.requestSerialize = placeRows(Exchange!.requestSerialize, 'tokens', 2);
  Exchange!.responseSerialize = placeRows(Exchange!.responseSerialize, 'result', 2);
  const { WatchCluster } = definition['switchyard.v1.Inference'] as ServiceDefinition;
  const { Join } = definition['switchyard.v1.Coordinator'] as ServiceDefinition;
  const { ModelInfer, ModelStreamInfer } = definition['inference.GRPCInferenceService'] as ServiceDefinition;
  ModelInfer!.responseSerialize = placeTensors(ModelInfer!.responseSerialize);
  ModelStreamInfer!.responseSerialize = placeTensors(ModelStreamInfer!.responseSerialize, 'inferResponse');
  for (const method of [WatchCluster!, Join!])
    method.responseSerialize = passEncoded(method.responseSerialize);
  return definition;
}

/** Every protocol of the product, as gRPC serves it and as reflection shows it. */
export const packageDefinition = loadProtocols();

const { v1 } = (loadPackageDefinition(packageDefinition) as unknown as ProtoGrpcType).switchyard;
const { inference } = loadPackageDefinition(packageDefinition) as unknown as InferenceGrpcType;
const { service: openInference } = inference.GRPCInferenceService;

/** Client constructors; `connect` of grpc-channel.ts makes clients of them. */
export const clients = {
  Inference: v1.Inference,
  Experts: v1.Experts,
  Coordinator: v1.Coordinator,
  Operator: v1.Operator,
  OpenInference: inference.GRPCInferenceService,
};

/** Service definitions, for `startGrpcServer`. */
export const services = {
  Inference: v1.Inference.service,
  Experts: v1.Experts.service,
  Coordinator: v1.Coordinator.service,
  Operator: v1.Operator.service,
  // A call of one request and one answer is a stream of them on the wire: so the server bounds it as it does its streams.
  OpenInference: {
    ...openInference,
    ModelInfer: { ...openInference.ModelInfer, requestStream: true, responseStream: true },
  } as ServiceDefinition,
};

/** The codecs of both ends of a stream, for transports other than gRPC. */
function codecsOf<Request, RequestInput extends object, Response, ResponseInput extends object>(
  service: string,
  method: string,
): { client: StreamCodec<RequestInput, Response>; server: StreamCodec<ResponseInput, Request> } {
  const { requestSerialize, requestDeserialize, responseSerialize, responseDeserialize } = (
    packageDefinition[service] as ServiceDefinition
  )[method]!;
  return {
    client: { serialize: requestSerialize, deserialize: responseDeserialize as (bytes: Buffer) => Response },
    server: { serialize: responseSerialize, deserialize: requestDeserialize as (bytes: Buffer) => Request },
  };
}

/** The messages of a link: a router is the client. */
export const exchangeCodec = codecsOf<RouterMessage, RouterMessageInput, WorkerMessage, WorkerMessageInput>(
  'switchyard.v1.Experts',
  'Exchange',
);

/** The messages of a control stream: a node is the client. */
export const joinCodec = codecsOf<
  NodeMessage,
  NodeMessageInput,
  CoordinatorMessage,
  CoordinatorMessageInput | EncodedMessage
>('switchyard.v1.Coordinator', 'Join');

/** The messages of a session. */
export const sessionCodec = codecsOf<
  SessionRequest,
  SessionRequestInput,
  SessionResponse,
  SessionResponseInput
>('switchyard.v1.Inference', 'Session');

const channelMessage = packageDefinition['switchyard.v1.ChannelMessage'] as MessageTypeDefinition<
  ChannelMessageInput,
  ChannelMessage
>;

/** The messages of a batch's channel, the same both ways. */
export const channelCodec: StreamCodec<ChannelMessageInput, ChannelMessage> = {
  serialize: channelMessage.serialize,
  deserialize: channelMessage.deserialize,
};

/** Of a message type of the definitions, to be sent to many peers. */
function encoder<Message>(type: string): (message: Message) => EncodedMessage {
  const definition = packageDefinition[`switchyard.v1.${type}`] as unknown;
  const { serialize } = definition as MessageTypeDefinition<Message, Message>;
  return (message) => new EncodedMessage(serialize(message));
}

/** For WatchCluster and Join, whose streams take such messages. */
export const encodeState = encoder<ClusterStateInput>('ClusterState');
export const encodeControl = encoder<CoordinatorMessageInput>('CoordinatorMessage');

import type { ServerUnaryCall, sendUnaryData, UntypedServiceImplementation } from '@grpc/grpc-js';
import { native } from '../../../native/index.js';
import { SwitchyardError } from '../../common/errors.js';
import type { ModelStatisticsRequest } from '../../common/generated/inference/ModelStatisticsRequest.js';
import type { RepositoryIndexRequest } from '../../common/generated/inference/RepositoryIndexRequest.js';
import type { SystemSharedMemoryStatusResponseInput } from '../../common/generated/inference/SystemSharedMemoryStatusResponse.js';
import type { GrpcService } from '../../common/grpc-server.js';
import type { MessageRoom } from '../../common/message-gate.js';
import { services } from '../../common/protocol.js';
import { toServiceError } from '../../common/status.js';
import { version } from '../../common/version.js';
import type { ModelSpec } from '../../model/spec.js';
import { ByteBudget } from '../budget.js';
import { messageRoomBytes, type RouterSettings } from '../config.js';
import type { RouterCore } from '../core.js';
import { describeConfig, describeMetadata, extensions, platform } from './describe.js';
import { type InferServerStream, InferStream } from './infer-stream.js';
import { findModel, modelVersion, type ServedModel, servedModels } from './models.js';
import { type Region, SharedRegions } from './regions.js';
import { Statistics } from './statistics.js';

export interface OpenInferenceOptions {
  router: string;
  config: RouterSettings;
  core: RouterCore;
  /** Of clients' messages that are in no chunk yet. */
  messages: MessageRoom;
  /** Whether the work of the process gets on. */
  live: () => boolean;
}

/** The Open Inference Protocol, version 2, of a router: existing clients call its layers as models. */
export class OpenInference {
  /** To be added to a gRPC server. */
  readonly service: GrpcService;
  private readonly regions: SharedRegions;
  private readonly statistics = new Statistics();
  /** Of answers that have not left. */
  private readonly answers: ByteBudget;
  private readonly streams = new Set<InferStream>();

  constructor(private readonly options: OpenInferenceOptions) {
    const { config, router, messages } = options;
    const node = `router ${router}`;
    this.regions = new SharedRegions({ native, max: config.sharedMemoryRegions, node });
    this.answers = new ByteBudget(messageRoomBytes(config), node);
    this.service = {
      definition: services.OpenInference,
      implementation: this.handlers(),
      messageRoom: messages,
    };
  }

  /** Ends the streams, when what came by them is answered. */
  finish(): void {
    for (const stream of this.streams) stream.finish();
  }

  /** As JSON, for operators. */
  state(): unknown {
    const { streams, regions, answers } = this;
    return { streams: streams.size, regions: regions.list('').length, answers: answers.state() };
  }

  private handlers(): UntypedServiceImplementation {
    const { live, core } = this.options;
    return {
      ServerLive: unary(() => ({ live: live() })),
      ServerReady: unary(() => ({ ready: core.readiness().ready })),
      ServerMetadata: unary(() => ({ name: platform, version, extensions })),
      ModelReady: unary((request: ModelName) => ({ ready: this.isReady(request) })),
      ModelMetadata: unary((request: ModelName) => describeMetadata(this.find(request), this.model.hidden)),
      ModelConfig: unary((request: ModelName) => ({
        config: describeConfig(this.find(request), this.model.hidden),
      })),
      ModelStatistics: unary((request: ModelStatisticsRequest) => {
        const models = request.name === '' ? servedModels(this.model) : [this.find(request)];
        return { modelStats: models.map((model) => this.statistics.describe(model)) };
      }),
      RepositoryIndex: unary((request: RepositoryIndexRequest) => ({ models: this.index(request) })),
      ModelInfer: (call: InferServerStream) => this.open(call, true),
      ModelStreamInfer: (call: InferServerStream) => this.open(call, false),
      SystemSharedMemoryStatus: unary(({ name }: { name: string }) =>
        describeRegions(this.regions.list(name)),
      ),
      SystemSharedMemoryRegister: unary((request: Region, peer) => {
        this.regions.register(request, peer);
        return {};
      }),
      SystemSharedMemoryUnregister: unary(({ name }: { name: string }) => {
        this.regions.unregister(name);
        return {};
      }),
      CudaSharedMemoryStatus: unary(() => ({})),
      CudaSharedMemoryUnregister: unary(() => ({})),
    };
  }

  private open(call: InferServerStream, single: boolean): void {
    if (call.cancelled) return;
    const { config, core } = this.options;
    const room = this.answers.open();
    const stream = new InferStream(call, single, {
      native,
      model: async (signal) => (await core.cluster.untilLoaded(config.readyWaitMs, signal)).spec,
      regions: this.regions,
      statistics: this.statistics,
      batches: core.batches,
      room,
      messageBytesMax: config.messageBytesMax,
      stallMs: config.clientStallMs,
      onEnd: () => {
        this.streams.delete(stream);
        room.close();
      },
    });
    this.streams.add(stream);
  }

  private get model(): ModelSpec {
    const { weights } = this.options.core.cluster;
    if (weights !== null) return weights.spec;
    const { reason } = this.options.core.readiness();
    throw new SwitchyardError('NOT_READY', `the router does not know its model yet: ${reason}`, { reason });
  }

  private find({ name, version: asked }: ModelName): ServedModel {
    return findModel(this.model, name, asked);
  }

  private isReady(request: ModelName): boolean {
    if (this.options.core.cluster.weights === null) return false;
    return this.whyNot(this.find(request)) === '';
  }

  /** Why the model takes no requests now, in words; empty: it does. */
  private whyNot({ layers }: ServedModel): string {
    return this.options.core.whyNot(layers.map(({ layer }) => layer));
  }

  private index({ ready }: RepositoryIndexRequest) {
    const models = servedModels(this.model).map((model) => {
      const reason = this.whyNot(model);
      const state = reason === '' ? 'READY' : 'UNAVAILABLE';
      return { name: model.name, version: modelVersion, state, reason };
    });
    return ready ? models.filter(({ state }) => state === 'READY') : models;
  }
}

interface ModelName {
  name: string;
  version: string;
}

/** A handler that answers with what `make` returns, and with the error that it throws. */
function unary<Request>(make: (request: Request, peer: string) => object) {
  return (call: ServerUnaryCall<Request, object>, answer: sendUnaryData<object>): void => {
    let made: object;
    try {
      made = make(call.request, call.getPeer());
    } catch (error) {
      answer(toServiceError(error));
      return;
    }
    answer(null, made);
  };
}

function describeRegions(regions: Region[]): SystemSharedMemoryStatusResponseInput {
  const described = regions.map(({ name, key, offset, byteSize }) => [name, { name, key, offset, byteSize }]);
  return { regions: Object.fromEntries(described) };
}

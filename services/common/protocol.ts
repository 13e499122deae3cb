import { join } from 'node:path';
import { loadPackageDefinition } from '@grpc/grpc-js';
import { loadSync, type PackageDefinition } from '@grpc/proto-loader';
import { packageRoot } from '../../native/locate.js';
import type { ProtoGrpcType as ClientTypes } from './generated/client.js';

/** Every protocol of the product, as gRPC serves it and as reflection shows it. */
export const packageDefinition: PackageDefinition = loadSync(
  ['client', 'control', 'model', 'tokens'].map((name) => `switchyard/v1/${name}.proto`),
  {
    includeDirs: [join(packageRoot(), 'proto')],
    longs: Number,
    enums: String,
    bytes: Buffer,
    defaults: true,
    oneofs: true,
  },
);

const { v1 } = (loadPackageDefinition(packageDefinition) as unknown as ClientTypes).switchyard;

/** Client constructors; `connect` of grpc-channel.ts makes clients of them. */
export const clients = { Inference: v1.Inference, Experts: v1.Experts, Coordinator: v1.Coordinator };

/** Service definitions, for `startGrpcServer`. */
export const services = {
  Inference: v1.Inference.service,
  Experts: v1.Experts.service,
  Coordinator: v1.Coordinator.service,
};

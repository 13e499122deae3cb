import type { UntypedHandleCall } from '@grpc/grpc-js';
import { afterEach } from '@jest/globals';
import { Access } from '../../services/common/access.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import {
  type GrpcServerOptions,
  type GrpcService,
  startGrpcServer,
} from '../../services/common/grpc-server.js';
import { createLogger } from '../../services/common/log.js';
import { services } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';

export const log = createLogger('test', 'test', 'silent');

export const messageBytesMax = 1024 * 1024;

const closers: (() => unknown)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Runs when the test is over, the last one first. */
export function atEnd(close: () => unknown): void {
  closers.push(close);
}

/** An Inference service that describes a model of the name given, and does what `Forward` says. */
export function inference(name: string, Forward: UntypedHandleCall = () => {}): GrpcService {
  return {
    definition: services.Inference,
    implementation: {
      Forward,
      DescribeModel: (_: unknown, callback: (error: null, value: object) => void) => callback(null, { name }),
      DescribeCluster: () => {},
    },
  };
}

export async function serve(options: Partial<GrpcServerOptions>) {
  const server = await startGrpcServer({
    host: '127.0.0.1',
    port: 0,
    access: new Access({}),
    insecure: false,
    messageLimit: { bytesMax: messageBytesMax, node: 'router r' },
    services: [inference('m')],
    log,
    ...options,
  });
  atEnd(() => server.close(0));
  return server;
}

/** The value or the error that a unary call calls back with. */
export function unary<Value>(
  call: (callback: (error: unknown, value?: Value) => void) => void,
): Promise<Value> {
  return new Promise((resolve, reject) => {
    call((error, value) => (error ? reject(fromServiceError(error)) : resolve(value as Value)));
  });
}

export async function errorOf(promise: Promise<unknown>): Promise<SwitchyardError> {
  const error = await promise.then(
    () => null,
    (reason: unknown) => reason,
  );
  if (error === null) throw new Error('it did not fail');
  return error as SwitchyardError;
}

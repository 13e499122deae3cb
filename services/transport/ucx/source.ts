import type { UcxFabric } from '../../../native/index.js';
import { SwitchyardError } from '../../common/errors.js';
import type { TransportChoice } from '../link.js';
import type { UcxPort, UcxPortOptions } from './port.js';

/** UCX as a process may use it. */
export interface Fabric extends UcxFabric {
  /** What leaves this machine is encrypted, or stays. Default: no. */
  readonly encrypted?: boolean;
}

/** Where links and batches get UCX from, where their transport allows it. */
export interface UcxSource {
  /** For a process that serves at `host`; null: there is none here. `apart`: without shared memory, for a peer that it would not wake. */
  fabric(host: string, apart?: boolean): Fabric | null;
  createPort<Out, In>(fabric: Fabric, options: UcxPortOptions<Out, In>): UcxPort<Out, In>;
}

/** In words, why an end whose transport is `choice` keeps to gRPC. */
export function whyNoUcx(choice: TransportChoice, end: string): string {
  return choice === 'grpc' ? `transport is grpc at ${end}` : `${end} is built without UCX`;
}

/** A link that was not made, or lost, because of UCX. */
export function ucxLoss(reason: string): SwitchyardError {
  return new SwitchyardError('LINK_LOST', `no way over UCX: ${reason}`, { transport: 'ucx' });
}

/** Whether an error says that a peer cannot be reached by UCX, so that gRPC is worth a try. */
export function isUcxUnreachable(error: SwitchyardError): boolean {
  return error.details.transport === 'ucx';
}

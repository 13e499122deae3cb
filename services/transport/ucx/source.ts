import type { UcxFabric } from '../../../native/index.js';
import { backoffMs } from '../../common/backoff.js';
import { type ErrorCode, SwitchyardError } from '../../common/errors.js';
import type { Random } from '../../runtime/random.js';
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

/** A link that was not made, or lost, because of UCX. `lasts`: another try would end in the same way. */
export function ucxLoss(reason: string, lasts = false): SwitchyardError {
  return new SwitchyardError('LINK_LOST', `no way over UCX: ${reason}`, { transport: 'ucx', lasts });
}

/** A peer that is slow or gone, and too few file descriptors or too little memory. */
const passingCodes: ReadonlySet<ErrorCode> = new Set(['LINK_LOST', 'RESOURCE_EXHAUSTED']);

/** Whether what UCX failed with may pass, so that another try is worth it. */
export function mayPass({ code, details }: SwitchyardError): boolean {
  return passingCodes.has(code) && details.lasts !== true;
}

/** Each try leaves UCX with an endpoint until the peer ends. */
const againMsMax = 300_000;
const againMsMin = 1_000;

/** Milliseconds until UCX is tried again beside a stream that had to stay on gRPC, after so many such tries. */
export function ucxAgainMs(random: Random, tries: number): number {
  return backoffMs(random, tries, againMsMin, againMsMax);
}

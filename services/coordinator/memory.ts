import { type DeviceRoom, expertBytesOn, inStoredBytes } from '../model/device-bytes.js';
import type { ModelSpec } from '../model/spec.js';
import type { Member } from './membership.js';

/** What the experts of each live worker may take. Workers that share the memory of their host have equal parts of what all of them leave for weights. */
export function weightBytes(
  living: readonly Member[],
  { latentBytes }: Pick<ModelSpec, 'latentBytes'>,
): Map<Member, number> {
  const sharers = new Map<string, Member[]>();
  for (const member of living) {
    const { host, memorySharedBytes } = member.hello;
    if (memorySharedBytes > 0) sharers.set(host, [...(sharers.get(host) ?? []), member]);
  }
  const bytes = new Map(living.map((member) => [member, member.hello.memoryBytes]));
  for (const members of sharers.values()) {
    const hellos = members.map(({ hello }) => hello);
    const whole = Math.min(...hellos.map(({ memorySharedBytes }) => memorySharedBytes));
    const beside = hellos.reduce((sum, one) => sum + one.memorySharedBytes - one.memoryBytes, 0);
    const share = Math.max(0, Math.floor((whole - beside) / members.length));
    for (const member of members) bytes.set(member, Math.min(share, member.hello.memoryBytes));
  }
  return new Map(Array.from(bytes, ([member, one]) => [member, Math.max(0, one - latentBytes)]));
}

/** What plans count with, in bytes as the model is stored, whatever an expert takes on the worker's device. */
export function roomForExperts(living: readonly Member[], model: ModelSpec): Map<Member, DeviceRoom> {
  const room = ({ hello, worker }: Member, memoryBytes: number) => {
    const told = { memoryBytes, loadBytesPerSecond: worker?.load?.bytesPerSecond || null };
    return inStoredBytes(told, model.expertBytes, expertBytesOn(hello.device, model));
  };
  return new Map([...weightBytes(living, model)].map(([member, bytes]) => [member, room(member, bytes)]));
}

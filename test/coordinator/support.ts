import type { NodeHello } from '../../services/common/generated/switchyard/v1/NodeHello.js';
import type { PlacementOptions } from '../../services/coordinator/plans.js';
import type { ModelSpec } from '../../services/model/spec.js';
import { presets, syntheticModel } from '../../services/model/synthetic.js';
import { plan } from '../../services/placement/plan.js';
import { linkSecretBytes } from '../../services/transport/link-key.js';

/** A worker's hello, with what a test wants otherwise. */
export function hello(name: string, fields: Partial<NodeHello> = {}): NodeHello {
  return {
    role: 'WORKER',
    name,
    address: '127.0.0.1:4000',
    host: 'local',
    device: 'cpu',
    threads: 1,
    memoryBytes: 2 ** 30,
    modelFingerprint: '',
    metricsUrl: '',
    pid: 1,
    linkSecret: Buffer.alloc(fields.role === 'ROUTER' ? 0 : linkSecretBytes, name),
    messageBytesMax: 0,
    held: [],
    term: 0,
    memorySharedBytes: 0,
    version: '0.1.0',
    ...fields,
  };
}

export const tinyModel: ModelSpec = syntheticModel(presets.tiny.model).spec;

export const placementOptions: PlacementOptions = {
  workers: 1,
  copies: 1,
  replicaSlots: null,
  rebalanceSeconds: 0,
  rebalanceBytesPerSecond: 2 ** 40,
  rebalanceLoads: 8,
  plan: async (input) => plan(input),
};

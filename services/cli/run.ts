import { z } from 'zod';
import { toggle } from '../common/config.js';
import { modelFields } from '../coordinator/config.js';
import { runBatch } from './batch.js';
import { batchFields, batchHelp } from './batch-options.js';
import { describeBatch, printFigures } from './batch-report.js';
import { clusterFields, clusterHelp, localClusterOptions } from './cluster-options.js';
import { defineCommand } from './command.js';
import { modelHelp } from './coordinator.js';
import { assertVerified } from './forward.js';
import { LocalCluster } from './local-cluster.js';
import { openLogs } from './logs.js';
import { abortOnSignal } from './signals.js';

const { layers: modelLayers, seed: modelSeed, ...otherModelFields } = modelFields;
const { layers: modelLayersHelp, seed: modelSeedHelp, ...otherModelHelp } = modelHelp;

/** The model of a cluster that one command starts for one batch; `layers` and `seed` are the batch's. */
export const ownModelFields = { ...otherModelFields, modelLayers, modelSeed };
export const ownModelHelp = {
  ...otherModelHelp,
  modelLayers: modelLayersHelp,
  modelSeed: modelSeedHelp,
} as const;

const ownModelSchema = z.object(ownModelFields);

/** The coordinator's flags for a model chosen by `ownModelFields`. */
export function modelFlags(config: z.infer<typeof ownModelSchema>) {
  const { preset, model, hidden, ffn, experts, topK, activation, modelLayers, modelSeed } = config;
  return { preset, model, hidden, ffn, experts, topK, activation, layers: modelLayers, seed: modelSeed };
}

export const runCommand = defineCommand({
  name: 'run',
  summary: 'Start a local cluster, submit one batch, stop the cluster',
  section: 'run',
  schema: z.object({ ...ownModelFields, ...clusterFields, ...batchFields, json: toggle().default(false) }),
  help: { ...ownModelHelp, ...clusterHelp, ...batchHelp, json: [null, 'print the summary as JSON'] },
  examples: [
    'switchyard run --model ./mixtral --workers 3 --input x.safetensors --tensor x --output y.safetensors --layers 1',
    'switchyard run --preset tiny --workers 2 --verify',
    'switchyard run --preset reference --ffn 1024 --workers 2 --json',
  ],
  run: async (config) => {
    const signal = abortOnSignal();
    // A checkpoint's own cluster runs without feedback unless asked, which lets the gate's choices be verified.
    const batch = { ...config, feedback: config.feedback ?? (config.model === null ? null : false) };
    const logs = await openLogs(config.logDirectory);
    const options = localClusterOptions(config, modelFlags(config));
    const cluster = await LocalCluster.start({ ...options, onLine: logs.write, signal });
    try {
      const report = await runBatch(cluster.client, batch, signal);
      const { hidden } = await cluster.client.describeModel();
      if (config.json) process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
      else printFigures(describeBatch(report, hidden));
      assertVerified(report.verification);
    } finally {
      await cluster.stop();
      await logs.close();
    }
  },
});

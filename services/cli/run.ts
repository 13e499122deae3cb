import { z } from 'zod';
import { checkSizes } from '../coordinator/config.js';
import { batchNamesInEnvironment } from './batch-options.js';
import { defineCommand } from './command.js';
import { ownClusterFields, ownClusterHelp, runOnOwnCluster } from './own-cluster.js';

export const runCommand = defineCommand({
  name: 'run',
  summary: 'Start a local cluster, submit one batch, stop the cluster',
  section: 'run',
  schema: z.object(ownClusterFields).superRefine(checkSizes),
  namesInEnvironment: batchNamesInEnvironment,
  help: ownClusterHelp,
  examples: [
    'switchyard run --model ./mixtral --workers 3 --input x.safetensors --tensor x --output y.safetensors --layers 1',
    'switchyard run --preset tiny --workers 2 --verify',
    'switchyard run --preset reference --ffn 1024 --workers 2 --json report.json',
  ],
  // A checkpoint runs without feedback unless asked, which also lets the gate's choices be verified.
  run: (config, file) =>
    runOnOwnCluster({ ...config, feedback: config.feedback ?? (config.model === null ? null : false) }, file),
});

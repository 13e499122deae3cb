import { z } from 'zod';
import { checkSizes } from '../coordinator/config.js';
import { type Preset, presets } from '../model/synthetic.js';
import { batchNamesInEnvironment, sampleSize } from './batch-options.js';
import { defineCommand } from './command.js';
import { type OwnClusterConfig, ownClusterFields, ownClusterHelp, runOnOwnCluster } from './own-cluster.js';

const verifiedTokens = 16;

export const demoCommand = defineCommand({
  name: 'demo',
  summary: 'Start a local cluster, stream a skewed batch through all layers, verify it, and report',
  section: 'demo',
  schema: z
    .object({ ...ownClusterFields, verify: sampleSize(verifiedTokens).default(verifiedTokens) })
    .superRefine(checkSizes),
  namesInEnvironment: batchNamesInEnvironment,
  help: {
    ...ownClusterHelp,
    verify: ['[tokens]', 'size of the sample that is recomputed in float64; false: none'],
  },
  examples: [
    'switchyard demo',
    'switchyard demo --workers 8 --preset tiny',
    'switchyard demo --no-feedback --json report.json',
  ],
  run: (config, file) =>
    runOnOwnCluster({ ...config, chunkTokens: config.chunkTokens ?? presetChunk(config) }, file),
});

/** The preset's own chunk size: small enough that the feedback loop can act within the batch. */
function presetChunk({ preset, model }: OwnClusterConfig): number | null {
  const chosen: Preset = presets[preset ?? 'demo'];
  return model === null ? chosen.chunkTokens : null;
}

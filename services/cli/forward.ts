import { z } from 'zod';
import { toggle } from '../common/config.js';
import { runBatch } from './batch.js';
import { batchFields, batchHelp, batchNamesInEnvironment } from './batch-options.js';
import { assertVerified, batchJson, describeBatch, formatFigures, reportStream } from './batch-report.js';
import { defineCommand } from './command.js';
import { connectionFields, connectionHelp, withClient } from './connection.js';
import { allowPlaintextText } from './service.js';
import { abortOnSignal, batchEndMsMax, endDespiteReads } from './signals.js';

export const forwardCommand = defineCommand({
  name: 'forward',
  summary: 'Submit a batch, from a file or synthetic, to a running cluster',
  section: 'forward',
  schema: z.object({
    ...connectionFields,
    allowPlaintextRows: toggle().default(false),
    ...batchFields,
    json: toggle().default(false),
  }),
  namesInEnvironment: batchNamesInEnvironment,
  help: {
    ...connectionHelp,
    allowPlaintextRows: [null, allowPlaintextText],
    ...batchHelp,
    json: [null, 'print the report as JSON'],
  },
  examples: [
    'switchyard forward --sequences 16 --length 1k --verify',
    'switchyard forward --input x.safetensors --tensor x --output y.safetensors --layers 0-3',
    'switchyard forward --address 10.0.0.1:7070 --input rows.bin --sequences 128 --output out.bin --deadline 60',
  ],
  run: async (config) => {
    const { json, ...batch } = config;
    await withClient(config, async (client) => {
      const report = await runBatch(client, batch, abortOnSignal(batchEndMsMax)).catch(async (error) => {
        await endDespiteReads();
        throw error;
      });
      const text = json
        ? `${JSON.stringify(batchJson(report), null, 2)}\n`
        : formatFigures(describeBatch(report));
      reportStream(batch.output, batch.returnRouting, batch.record).write(text);
      assertVerified(report.verification);
    });
  },
});

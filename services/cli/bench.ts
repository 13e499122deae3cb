import { z } from 'zod';
import { humanCount, text } from '../common/config.js';
import { OutputFile } from '../common/output-file.js';
import { workerSchema } from '../worker/config.js';
import { reportStream } from './batch-report.js';
import { defineCommand } from './command.js';
import { table } from './format.js';

export const benchCommand = defineCommand({
  name: 'bench',
  summary: 'Measure, as ratios to limits or peers taken in the same run',
  section: 'bench',
  schema: z.object({
    group: text().nullable().default(null),
    runs: humanCount(1, 100).default(3),
    json: text().nullable().default(null),
    timeline: text().nullable().default(null),
    device: workerSchema.shape.device.removeDefault().nullable().default(null),
  }),
  help: {
    group: ['name', 'what to measure'],
    runs: ['n', 'counted runs of each figure'],
    json: ['file', 'write machine and results as JSON'],
    device: ['device', 'cluster/gpu-…: what its worker computes on (default: a CUDA device if there is one)'],
    timeline: ['file', 'hosts/overlap: draw what a worker did and when, as SVG'],
  },
  argument: { name: 'group', text: 'what to measure, such as kernels or cluster/seed (default: everything)' },
  examples: ['switchyard bench', 'switchyard bench kernels --runs 5 --json bench.json'],
  run: async ({ group, runs, json, timeline, device }) => {
    const { runBench } = await import('../../bench/index.js');
    const log = (line: string) => process.stderr.write(`${line}\n`);
    // Opened before anything is measured: hours of work must not end at a path that cannot be written.
    const file = json === null ? null : await OutputFile.open('json', json);
    const report = await runBench(group, { runs, timeline, device, log }).catch(async (error) => {
      await file?.abort();
      throw error;
    });
    const rows = report.results.map(({ id, value, unit, reference, referenceName, ratio }) => [
      id,
      `${value.toPrecision(4)} ${unit}`,
      `${reference.toPrecision(4)} ${unit} (${referenceName})`,
      ratio.toFixed(3),
    ]);
    reportStream(json).write(`${table([['FIGURE', 'MEASURED', 'BESIDE', 'RATIO'], ...rows])}\n`);
    await file?.write(Buffer.from(`${JSON.stringify(report, null, 2)}\n`));
    await file?.close();
  },
});

import { writeFile } from 'node:fs/promises';
import { z } from 'zod';
import type { BatchSummary } from '../client/index.js';
import { humanCount, text } from '../common/config.js';
import { type Preset, type PresetName, presets } from '../model/synthetic.js';
import { type BatchReport, runBatch } from './batch.js';
import { type BatchConfig, batchFields, batchHelp } from './batch-options.js';
import { describeBatch, phaseSeconds, printFigures } from './batch-report.js';
import { clusterFields, clusterHelp, localClusterOptions } from './cluster-options.js';
import { type ProcessUsage, UsageMeter } from './cluster-usage.js';
import { defineCommand } from './command.js';
import { bytes, count, percent, seconds, table } from './format.js';
import { assertVerified } from './forward.js';
import { LocalCluster } from './local-cluster.js';
import { openLogs } from './logs.js';
import { modelFlags, ownModelFields, ownModelHelp } from './run.js';
import { abortOnSignal } from './signals.js';

const verifiedTokens = 16;

export const demoCommand = defineCommand({
  name: 'demo',
  summary: 'Start a local cluster, stream a skewed batch through all layers, verify it, and report',
  section: 'demo',
  schema: z.object({
    ...ownModelFields,
    ...clusterFields,
    ...batchFields,
    verify: humanCount(1, 65_536).default(verifiedTokens),
    json: text().nullable().default(null),
  }),
  help: {
    ...ownModelHelp,
    ...clusterHelp,
    ...batchHelp,
    verify: ['tokens', 'size of the sample that is recomputed in float64'],
    json: ['file', 'write the report as JSON'],
  },
  examples: [
    'switchyard demo',
    'switchyard demo --workers 8 --preset tiny',
    'switchyard demo --no-feedback --json report.json',
  ],
  run: async (config) => {
    const signal = abortOnSignal();
    const startedMs = performance.now();
    const logs = await openLogs(config.logDirectory);
    say(
      `starting 1 coordinator, ${config.workers} workers${config.routers > 0 ? `, ${config.routers} routers` : ''} …`,
    );
    const options = localClusterOptions(config, modelFlags(config));
    const cluster = await LocalCluster.start({ ...options, onLine: logs.write, signal });
    try {
      await announce(cluster, (performance.now() - startedMs) / 1000);
      const meter = await UsageMeter.begin(cluster);
      let usage: ProcessUsage[] = [];
      const report = await runBatch(cluster.client, demoBatch(config), signal, async () => {
        usage = await meter.end();
      });
      const { hidden } = await cluster.client.describeModel();
      printFigures(describeBatch(report, hidden));
      say(`\n${describeUsage(usage)}`);
      if (config.json !== null) {
        await writeFile(config.json, `${JSON.stringify(toJson(report, usage, hidden), null, 2)}\n`);
      }
      assertVerified(report.verification);
    } finally {
      await cluster.stop();
      await logs.close();
    }
    say(`\nstopped after ${seconds((performance.now() - startedMs) / 1000)}`);
  },
});

const say = (line: string) => process.stdout.write(`${line}\n`);

/** The preset's own chunk size, so that feedback has enough chunks to act on. */
function demoBatch(config: BatchConfig & { preset: PresetName | null; model: string | null }): BatchConfig {
  const preset: Preset | null = config.model === null ? presets[config.preset ?? 'demo'] : null;
  return { ...config, chunkTokens: config.chunkTokens ?? preset?.chunkTokens ?? null };
}

async function announce(cluster: LocalCluster, readySeconds: number): Promise<void> {
  const { view, model } = await cluster.client.describeCluster();
  const experts = count(view?.placements.length ?? 0);
  say(
    `ready in ${seconds(readySeconds)}: model ${model?.name}, ${experts} experts in ${model?.layers.length} layers`,
  );
  say(`metrics while it runs: ${cluster.metricsUrl}/metrics\n`);
}

function describeUsage(usage: readonly ProcessUsage[]): string {
  const rows = usage.map(({ name, pid, peakRssBytes, eventLoopUtilization, computeShare }) => [
    name,
    String(pid),
    peakRssBytes === null ? '-' : bytes(peakRssBytes),
    percent(eventLoopUtilization),
    computeShare === null ? '-' : percent(computeShare),
  ]);
  return table([['PROCESS', 'PID', 'PEAK RSS', 'EVENT LOOP BUSY', 'COMPUTING'], ...rows]);
}

function toJson({ summary, verification }: BatchReport, usage: readonly ProcessUsage[], hidden: number) {
  return {
    verified: verification?.verified ?? false,
    relativeError: verification?.relativeError ?? null,
    tokens: summary.tokens,
    seconds: summary.seconds,
    tokensPerSecond: summary.tokens / summary.seconds,
    messages: { sent: summary.messagesSent, ungrouped: summary.assignments },
    bytes: byteFigures(summary, hidden),
    balancedness: summary.balancedness,
    phaseSeconds: phaseSeconds(summary),
    verification,
    processes: usage,
  };
}

function byteFigures(summary: BatchSummary, hidden: number) {
  return {
    sent: summary.bytesSent,
    withoutDedup: summary.assignments * hidden * 2,
    returned: summary.bytesReturned,
  };
}

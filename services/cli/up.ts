import { z } from 'zod';
import { decimal, port, toggle } from '../common/config.js';
import { onAbort } from '../common/lifecycle.js';
import { checkSizes, modelFields } from '../coordinator/config.js';
import { clusterFields, clusterHelp, localClusterOptions } from './cluster-options.js';
import { defineCommand } from './command.js';
import { modelHelp } from './coordinator.js';
import { count, expertsOf, seconds, table } from './format.js';
import { clusterEndMsMax, LocalCluster } from './local-cluster.js';
import type { LocalProcess } from './local-process.js';
import { openLogs, readable } from './logs.js';
import { abortOnSignal } from './signals.js';

export const upCommand = defineCommand({
  name: 'up',
  summary: 'Start a local cluster and keep it running until Ctrl-C',
  section: 'up',
  schema: z
    .object({
      ...modelFields,
      ...clusterFields,
      port: port().default(7070),
      metricsPort: port().default(7071),
      feedback: toggle().nullable().default(null),
      feedbackRate: decimal(0, 1).nullable().default(null),
      json: toggle().default(false),
    })
    .superRefine(checkSizes),
  help: {
    ...modelHelp,
    ...clusterHelp,
    feedback: [null, 'selection bias from load feedback (default: on for synthetic models)'],
    feedbackRate: ['rate', 'how far a bias moves in one step'],
    json: [null, 'print log lines as JSON'],
  },
  examples: [
    'switchyard up --preset demo --workers 4',
    'switchyard up --model ./mixtral --workers 2 --routers 1 --log-directory logs',
  ],
  run: async (config, file) => {
    const signal = abortOnSignal(clusterEndMsMax);
    const { feedback, feedbackRate } = config;
    const model = Object.fromEntries(
      Object.keys(modelFields).map((key) => [key, config[key as keyof typeof modelFields]]),
    );
    const logs = await openLogs(config);
    const print = (process: LocalProcess, line: string) =>
      say(config.json ? line : readable(process.name, line));
    const startedMs = performance.now();
    const options = localClusterOptions(config, { ...model, feedback, feedbackRate }, file);
    const onLine = config.logDirectory === null ? print : logs.write;
    let cluster: LocalCluster | null = null;
    try {
      cluster = await LocalCluster.start({ ...options, onLine, signal });
      const readySeconds = (performance.now() - startedMs) / 1000;
      const watched = cluster;
      const serving = config.json
        ? watch(watched)
        : announce(watched, readySeconds).then(() => watch(watched));
      await Promise.race([aborted(signal), serving]);
    } finally {
      await cluster?.stop();
      await logs.close();
    }
  },
});

const say = (line: string) => process.stdout.write(`${line}\n`);

const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    onAbort(signal, resolve);
  });

async function announce(cluster: LocalCluster, readySeconds: number): Promise<void> {
  const { name, layers } = await cluster.client.describeModel();
  const listening = await Promise.all(cluster.processes.map((process) => process.listening));
  const rows = cluster.processes.map((process, index) => {
    const { address, metricsUrl } = listening[index]!;
    return [process.name, String(process.pid), address, `${metricsUrl}/metrics`];
  });
  say(table([['PROCESS', 'PID', 'ADDRESS', 'METRICS'], ...rows]));
  say(
    `ready in ${seconds(readySeconds)}: ${count(expertsOf(layers))} experts of ${name} at ${cluster.address}; Ctrl-C stops it`,
  );
}

/** Reports processes that end by themselves. Rejects when the coordinator does: nothing works without it. */
async function watch(cluster: LocalCluster): Promise<never> {
  return new Promise((_, reject) => {
    for (const child of cluster.processes) {
      child.exited.then((exit) => {
        if (cluster.stopped) return;
        const error = child.exitError(exit);
        if (child.role === 'coordinator') reject(error);
        else process.stderr.write(`switchyard: ${error.code}: ${error.message}\n`);
      });
    }
  });
}

import { z } from 'zod';
import { decimal, toggle } from '../common/config.js';
import { readTopology } from '../coordinator/topology.js';
import type { PlanInput } from '../placement/input.js';
import { type Plan, plan } from '../placement/plan.js';
import { defineCommand } from './command.js';
import { connectionFields, connectionHelp, readCredential, withClient } from './connection.js';
import { bytes, count, seconds, table } from './format.js';
import { measureLoad } from './measure-load.js';
import {
  type DeviceInput,
  planFields,
  planHelp,
  planInput,
  planNamesInEnvironment,
  required,
} from './plan-input.js';
import { type Recording, readRecording } from './recording.js';

/** Said with every plan. */
const notApplied =
  'dry run: switchyard rebalance --recording FILE plans for a recording from where copies are then, and applies that';

export const planCommand = defineCommand({
  name: 'plan',
  summary: 'Show where copies of experts should be for the present load, and what that would gain (dry run)',
  section: 'plan',
  schema: z.object({
    ...connectionFields,
    ...planFields,
    seconds: decimal(0.1, 86_400).default(10),
    json: toggle().default(false),
  }),
  namesInEnvironment: planNamesInEnvironment,
  help: {
    ...connectionHelp,
    ...planHelp,
    seconds: ['seconds', 'how long to count what routers send to experts'],
    json: [null, 'print figures and target as JSON'],
  },
  examples: [
    'switchyard plan',
    'switchyard plan --copies 2 --json > plan.json',
    'switchyard forward --record load.json && switchyard plan --recording load.json --topology hosts.yaml',
  ],
  run: async (config) => {
    const topology = config.topology === null ? null : readTopology(config.topology);
    const { recording, rules } =
      config.recording === null
        ? await withClient(config, (client) => measureLoad(client, readCredential(config), config.seconds))
        : { recording: readRecording(config.recording) };
    const input = planInput(recording, topology, config, rules);
    const planned = plan(input);
    const shown = config.json
      ? JSON.stringify(planJson(recording, input, planned), null, 2)
      : describePlan(recording, input, planned);
    process.stdout.write(`${shown}\n`);
  },
});

type Predictions = Plan['predicted']['target'];

/** Over the layers. */
function figuresOf(layers: Predictions) {
  const mean = (value: (layer: Predictions[number]) => number) =>
    layers.reduce((sum, layer) => sum + value(layer), 0) / layers.length;
  return {
    copies: layers.reduce((sum, { copies }) => sum + copies, 0),
    missing: layers.reduce((sum, { missing }) => sum + missing, 0),
    imbalance: mean(({ imbalance }) => imbalance),
    imbalanceMax: Math.max(...layers.map(({ imbalance }) => imbalance)),
    balancedness: mean(({ balancedness }) => balancedness),
    workersPerToken: mean(({ workersPerToken }) => workersPerToken),
    hostsPerToken: mean(({ hostsPerToken }) => hostsPerToken),
  };
}

const rowsOf = ({ layers }: Recording) =>
  layers.flatMap(({ rows }) => rows).reduce((sum, one) => sum + one, 0);

function planJson(recording: Recording, input: PlanInput, { target, predicted, ...changes }: Plan) {
  const names = (holders: readonly number[]) => holders.map((worker) => input.workers[worker]!.name);
  return {
    applied: false,
    note: notApplied,
    model: recording.model,
    rows: rowsOf(recording),
    seconds: recording.seconds,
    horizonSeconds: input.horizonSeconds,
    present: figuresOf(predicted.present),
    target: figuresOf(predicted.target),
    ...changes,
    layers: input.layers.map(({ layer }, index) => ({
      layer,
      present: predicted.present[index],
      target: predicted.target[index],
      workersOf: target[index]!.map(names),
    })),
  };
}

function describePlan(recording: Recording, input: DeviceInput, planned: Plan): string {
  const [present, target] = [figuresOf(planned.predicted.present), figuresOf(planned.predicted.target)];
  const row = (name: string, show: (figures: typeof target) => string) => [name, show(present), show(target)];
  const figures = table([
    ['PREDICTED', 'PRESENT', 'TARGET'],
    row('balancedness, mean of layers', ({ balancedness }) => balancedness.toFixed(3)),
    row('imbalance, mean of layers', ({ imbalance }) => imbalance.toFixed(3)),
    row('imbalance, worst layer', ({ imbalanceMax }) => imbalanceMax.toFixed(3)),
    row('workers of a token', ({ workersPerToken }) => workersPerToken.toFixed(2)),
    row('hosts of a token', ({ hostsPerToken }) => hostsPerToken.toFixed(2)),
    row('copies', ({ copies }) => count(copies)),
    row('experts without a copy', ({ missing }) => count(missing)),
  ]);
  const { copiesToLoad, copiesToDrop, copiesRequired, bytesToLoad, secondsToLoad } = planned;
  const { gainSeconds, costSeconds, netGainSeconds } = planned;
  const summary = [
    `load      ${count(rowsOf(recording))} rows in ${seconds(recording.seconds)}, ${recording.layers.length} layers of ${recording.model}`,
    `to load   ${count(copiesToLoad)} copies, ${bytes(bytesToLoad)}${required(copiesRequired, input)}, in ${seconds(secondsToLoad)}; to drop ${count(copiesToDrop)}`,
    `net gain  ${seconds(netGainSeconds)} of the busiest workers' time in ${seconds(input.horizonSeconds)}: ${seconds(gainSeconds)} less ${seconds(costSeconds)} for loading`,
    copiesToLoad + copiesToDrop === 0 ? 'nothing to move: no change pays' : '',
    notApplied,
  ];
  return [figures, workerTable(input, planned), summary.filter((line) => line !== '').join('\n')].join(
    '\n\n',
  );
}

function workerTable({ workers, layers, present }: DeviceInput, { target }: Plan): string {
  const held = (copies: PlanInput['present'], worker: number) =>
    copies.map((experts) => experts.filter((holders) => holders.includes(worker)).length);
  const sum = (counts: number[]) => counts.reduce((total, one) => total + one, 0);
  return table([
    ['WORKER', 'HOST', 'ROWS/S', 'EXPERTS', 'TARGET', 'TAKES', 'OF MEMORY'],
    ...workers.map(({ name, host, rowsPerSecond, deviceMemoryBytes, deviceBytesPerByte }, worker) => {
      const copies = held(target, worker);
      const taken = sum(copies.map((one, layer) => one * layers[layer]!.expertBytes)) * deviceBytesPerByte;
      const counts = [count(sum(held(present, worker))), count(sum(copies))];
      return [name, host, count(rowsPerSecond), ...counts, bytes(taken), bytes(deviceMemoryBytes)];
    }),
  ]);
}

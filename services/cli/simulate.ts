import { z } from 'zod';
import { humanCount, toggle } from '../common/config.js';
import { type SimulationResult, simulate } from '../simulator/simulate.js';
import { defineCommand } from './command.js';

/** What a run of seeds came to, for tools. */
interface SimulationReport {
  seeds: number;
  /** In how many of them something happened that must never happen. */
  failed: number;
  failedSeeds: number[];
  seconds: number;
  events: number;
}

/** Coordinators have a key of this name, of the model. */
export const simulationNamesInEnvironment = { seed: 'simulationSeed' } as const;

export const simulateCommand = defineCommand({
  name: 'simulate',
  summary:
    'Run whole clusters in one process and virtual time, with faults that a seed gives, and check what they do',
  section: 'simulate',
  schema: z.object({
    seed: humanCount(0, Number.MAX_SAFE_INTEGER).default(1),
    seeds: humanCount(1, 100_000_000).default(1),
    untilFailure: toggle().default(false),
    events: toggle().default(false),
    json: toggle().default(false),
  }),
  namesInEnvironment: simulationNamesInEnvironment,
  help: {
    seed: ['n', 'the first seed'],
    seeds: ['n', 'how many seeds, one after the other'],
    untilFailure: [null, 'end with the first seed that fails'],
    events: [null, 'print everything that happens'],
    json: [null, 'print the result as JSON'],
  },
  examples: ['switchyard simulate --seed 4711 --events', 'switchyard simulate --seeds 1000 --json'],
  run: async ({ seed: first, seeds, untilFailure, events, json }) => {
    const started = process.cpuUsage();
    const report: SimulationReport = { seeds: 0, failed: 0, failedSeeds: [], seconds: 0, events: 0 };
    const onLine = (line: string) => process.stdout.write(`${line}\n`);
    for (let seed = first; seed < first + seeds; seed += 1) {
      const result = await simulate(seed, events ? { onLine } : {});
      report.seeds += 1;
      report.events += result.events;
      if (result.violation === null) continue;
      report.failed += 1;
      report.failedSeeds.push(seed);
      process.stderr.write(describeFailure(result));
      if (untilFailure) break;
    }
    const { user, system } = process.cpuUsage(started);
    report.seconds = (user + system) / 1e6;
    process.stdout.write(json ? `${JSON.stringify(report)}\n` : describe(report));
    process.exitCode = report.failed === 0 ? 0 : 1;
  },
});

function describe({ seeds, failed, failedSeeds, seconds, events }: SimulationReport): string {
  const shown = failed === 0 ? '' : `: ${failedSeeds.slice(0, 20).join(', ')}${failed > 20 ? ', …' : ''}`;
  return `${seeds} seeds, ${failed} failed${shown}; ${events} events in ${seconds.toFixed(1)} s of one core\n`;
}

function describeFailure({ seed, violation, tail }: SimulationResult): string {
  const last = tail.map((line) => `  ${line.slice(0, 240)}\n`).join('');
  return `seed ${seed}: ${violation}\nthe last events:\n${last}replay with: switchyard simulate --seed ${seed} --events\n\n`;
}

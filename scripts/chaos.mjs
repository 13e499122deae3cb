/**
 * Faults on real processes under load: workers and the coordinator are killed, stopped and ended, in an order that depends on the
 * seed alone. No batch may fail, no row be lost, and every output is what it is without faults.
 * With --cables each process has a network of its own, whose cable is pulled too; that needs the rights of root.
 * npm run chaos -- --runs 100 [--seed 1] [--faults 4] [--copies 2] [--transport auto] [--lease-ms 2000] [--cables] [--json]
 */
import { spawnSync } from 'node:child_process';
import { runChaos } from '../dist/bench/chaos/run.js';
import { oneOf, readArguments, wholeNumber } from './arguments.mjs';

const text = (standard) => ({ type: 'string', default: standard });
const { values } = readArguments({
  options: {
    runs: text('10'),
    seed: text('1'),
    faults: text('4'),
    copies: text('2'),
    workers: text('3'),
    routers: text('2'),
    transport: text('auto'),
    'lease-ms': text('2000'),
    cables: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});
const count = (name, min, max) => wholeNumber(name, values[name], min, max);
const workers = count('workers', 1, 256);
const options = {
  cables: values.cables,
  runs: count('runs', 1),
  seed: count('seed', 0),
  faults: count('faults', 0),
  copies: count('copies', 1, Math.min(workers, 64)),
  workers,
  routers: count('routers', 1, 64),
  leaseMs: count('lease-ms', 100, 600_000),
  transport: oneOf('--transport', values.transport, ['auto', 'ucx', 'grpc']),
  log: (line) => process.stderr.write(`${line}\n`),
};
// The cables end in a network that is this program's alone.
if (values.cables && process.env.SWITCHYARD_CHAOS !== 'apart') {
  const { status } = spawnSync('unshare', ['--net', process.execPath, ...process.argv.slice(1)], {
    stdio: 'inherit',
    env: { ...process.env, SWITCHYARD_CHAOS: 'apart' },
  });
  process.exit(status ?? 1);
}
const report = await runChaos(options);
const { pauseMilliseconds: pause, healMilliseconds: heal } = report;
process.stdout.write(
  values.json
    ? `${JSON.stringify(report, null, 2)}\n`
    : `${report.faults} faults in ${report.runs} runs, ${report.batches} batches: ${report.failedBatches} failed, ` +
        `${report.rowsLost} rows lost, ${report.mismatches} batches with other outputs, ${report.notHealed.length} runs not healed\n` +
        `longest pause of answers after a fault: p50 ${pause.p50} ms, p99 ${pause.p99} ms, most ${pause.max} ms\n` +
        `whole again: p50 ${heal.p50} ms, p99 ${heal.p99} ms, most ${heal.max} ms after the process runs again\n` +
        [...report.reasons, ...report.notHealed].map((line) => `  ${line}\n`).join(''),
);
const faultless = report.failedBatches + report.rowsLost + report.mismatches + report.notHealed.length === 0;
process.exit(faultless ? 0 : 1);

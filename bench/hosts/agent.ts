/**
 * The first process of a host (see host.ts): `node agent.js NAME`. It answers the calls of the process that started it,
 * starts the host's services as its children, and is the host's client.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { promisify } from 'node:util';
import { LocalProcess } from '../../services/cli/local-process.js';
import { readMetrics } from '../../services/cli/node-metrics.js';
import {
  type ForwardCall,
  type ForwardOptions,
  type RowsReader,
  SwitchyardClient,
} from '../../services/client/index.js';
import { asSwitchyardError, SwitchyardError } from '../../services/common/errors.js';
import { presets } from '../../services/model/synthetic.js';
import { drain, repeatedRows } from '../batch.js';
import { rebalance } from '../operator.js';
import { topicChoices } from '../topics.js';
import {
  type BatchRequest,
  type HostCalls,
  type HostReply,
  type HostRequest,
  linkDevice,
  type ProcessCpu,
} from './calls.js';
import { ticksPerSecond } from './machine.js';

const run = promisify(execFile);
const outputBytesMax = 64 * 1024 * 1024;

const processes = new Map<string, LocalProcess>();
let client: SwitchyardClient | null = null;
let rows: RowsReader | null = null;
let given: ForwardOptions['given'];

function started(name: string): LocalProcess {
  const process = processes.get(name);
  if (!process) throw new SwitchyardError('INTERNAL', `no process ${name} was started on this host`);
  return process;
}

/** Sends the client's rows to the router of this host. */
function begin(options: BatchRequest): Promise<ForwardCall> {
  if (client === null || rows === null)
    throw new SwitchyardError('INTERNAL', 'the client is not connected, or has no rows');
  return client.forward(rows, { ...options, routers: 1, ...(given && { given }) });
}

const calls: HostCalls = {
  execute: async (command, args) => {
    const { stdout } = await run(command, args, { maxBuffer: outputBytesMax });
    return stdout;
  },
  start: ({ role, name, flags, environment }) => {
    const process = new LocalProcess(role, name, flags, environment, () => {});
    processes.set(name, process);
    return process.listening;
  },
  stop: async (name, graceMs, signal) => {
    const process = started(name);
    processes.delete(name);
    if (graceMs !== null) return process.stop(graceMs, signal);
    process.kill('SIGKILL');
    return process.exited;
  },
  lines: async (name) => started(name).recentLines,
  connect: async (address, credential, routers, timeoutMs) => {
    client?.destroy();
    client = await SwitchyardClient.connect(address, { ...credential, timeoutMs });
    await client.waitUntilReady(timeoutMs, routers);
  },
  prepare: async (preset, tokens) => {
    rows = await repeatedRows(presets[preset].model.hidden, tokens);
  },
  forward: async (options) => {
    const before = performance.eventLoopUtilization();
    const seconds = await drain(await begin(options), rows!.hidden);
    const { utilization } = performance.eventLoopUtilization(before);
    return { seconds, eventLoopUtilization: utilization };
  },
  prepareTopics: async (hidden, tokens, topics) => {
    rows = await repeatedRows(hidden, tokens);
    const experts = topicChoices(topics, 0, tokens);
    const weights = new Float32Array(experts.length).fill(1 / topics.topK);
    const part = (first: number, count: number) =>
      [first * topics.topK, (first + count) * topics.topK] as const;
    given = (first, count) => ({
      experts: experts.subarray(...part(first, count)),
      weights: weights.subarray(...part(first, count)),
    });
  },
  rebalance: (coordinator, token, target) => rebalance(client!, coordinator, token, target),
  digest: async (options) => {
    const { rows: answers } = await (await begin(options)).collect();
    return createHash('sha256').update(answers).digest('hex');
  },
  metrics: async (name, token) => {
    const { metricsUrl } = await started(name).listening;
    return [...(await readMetrics(metricsUrl, { token, tls: null }))];
  },
  cpu: async () => [
    cpuOf('client', process.pid),
    ...[...processes.values()].map((one) => cpuOf(one.name, one.pid)),
  ],
  linkBytes: async () => {
    const line = readFileSync('/proc/net/dev', 'utf8')
      .split('\n')
      .find((one) => one.trim().startsWith(`${linkDevice}:`))!;
    // Eight columns of what was received, the first of which counts bytes, then those of what was sent.
    const columns = line
      .slice(line.indexOf(':') + 1)
      .trim()
      .split(/\s+/);
    return { received: Number(columns[0]), sent: Number(columns[8]) };
  },
};

/** Threads of one name are added up. The first thread is the event loop; Node's helpers bear its name. */
function cpuOf(name: string, pid: number): ProcessCpu {
  const threads: Record<string, number> = {};
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const stat = readFileSync(`/proc/${pid}/task/${task}/stat`, 'utf8');
    const said = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'));
    const thread = Number(task) === pid ? 'event loop' : said;
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const seconds = (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
    threads[thread] = (threads[thread] ?? 0) + seconds;
  }
  return { name, threads };
}

async function answer({ id, method, args }: HostRequest): Promise<void> {
  const reply: HostReply = { id };
  try {
    reply.value = await (calls[method] as (...args: unknown[]) => Promise<unknown>)(...args);
  } catch (thrown) {
    const { code, message } = asSwitchyardError(thrown);
    reply.error = { code, message };
  }
  if (process.connected) process.send!(reply);
}

process.on('message', (request: HostRequest) => void answer(request));
process.on('disconnect', () => process.exit(0));
await run('hostname', [process.argv[2]!]);
await run('ip', ['link', 'set', 'lo', 'up']);
process.send!('ready');

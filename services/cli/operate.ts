import { connectivityState } from '@grpc/grpc-js';
import { z } from 'zod';
import { allFailed, type Failure } from '../client/all-failed.js';
import { unanswered } from '../client/connections.js';
import { addresses, nodeName, type Origin } from '../common/config.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import { copiesMessage } from '../common/expert-copies.js';
import type { ClusterDescription } from '../common/generated/switchyard/v1/ClusterDescription.js';
import type { RebalanceAnswer } from '../common/generated/switchyard/v1/RebalanceAnswer.js';
import type { WorkerMark } from '../common/generated/switchyard/v1/WorkerMark.js';
import { connect } from '../common/grpc-channel.js';
import { clients } from '../common/protocol.js';
import { fromServiceError, isUntrusted } from '../common/status.js';
import { Tls } from '../common/tls.js';
import { readTopology } from '../coordinator/topology.js';
import { plan } from '../placement/plan.js';
import { defineCommand } from './command.js';
import { type CredentialConfig, credentialFields, readCredential, tlsHelp } from './connection.js';
import { bytes, count, seconds } from './format.js';
import {
  type PlanOptions,
  planFields,
  planHelp,
  planInput,
  planNamesInEnvironment,
  required,
  rulesOf,
} from './plan-input.js';
import { checkModel, loadOn, readRecording, recordCluster } from './recording.js';

const operatorFields = { address: addresses().default(['127.0.0.1:7070']), ...credentialFields };
const operatorHelp = {
  address: ['host:port,…', 'the coordinator; several: that which leads'],
  token: ['token', "the operator's token; better in SWITCHYARD_TOKEN or --token-file"],
  tokenFile: ['file', 'file that holds the token'],
  ...tlsHelp,
} as const;

type Connection = CredentialConfig & { address: string[] };

const markFields = { ...operatorFields, worker: nodeName().nullable().default(null) };
const rebalanceFields = { ...operatorFields, ...planFields };
/** The commands share a section of the file. */
const sectionOf = {
  section: 'operate',
  othersKeys: Object.keys({ ...markFields, ...rebalanceFields }),
} as const;

const messageBytesMax = 64 * 1024 * 1024;
/** How long connecting may take. */
const connectMsMax = 5_000;
/** Planning the largest models takes seconds. */
const answerMsMax = 60_000;

type Services = Pick<typeof clients, 'Operator' | 'Inference'>;
type Call<Service extends keyof Services, Answer> = (
  client: InstanceType<Services[Service]>,
  deadline: Date,
  answer: (error: Error | null, value?: Answer) => void,
) => unknown;

/** One call to the coordinator that leads: one of those given, or that which one of them names. */
async function ask<Service extends keyof Services, Answer>(
  config: Connection,
  service: Service,
  call: Call<Service, Answer>,
): Promise<Answer> {
  const candidates = [...config.address];
  const failures: Failure[] = [];
  for (const address of candidates) {
    try {
      return await askAt(address, config, service, call);
    } catch (error) {
      const thrown = asSwitchyardError(error);
      const { code, details, message } = thrown;
      const failure = code === 'LINK_LOST' ? unanswered(address, message, thrown) : thrown;
      const mayBeElsewhere = ['NOT_LEADING', 'DRAINING', 'LINK_LOST'].includes(code);
      if (!mayBeElsewhere && !isUntrusted(thrown)) throw failure;
      failures.push({ address, error: failure });
      const leader = String(details.leader ?? '');
      if (leader !== '' && !candidates.includes(leader)) candidates.push(leader);
    }
  }
  throw allFailed(failures);
}

async function askAt<Service extends keyof Services, Answer>(
  address: string,
  config: Connection,
  service: Service,
  call: Call<Service, Answer>,
): Promise<Answer> {
  const { token = null, tls: files } = readCredential(config);
  const tls = files ? new Tls(files) : null;
  const client = connect<InstanceType<Services[Service]>>(clients[service] as never, address, {
    ...{ token, tls, messageBytesMax },
  });
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise((resolve, reject) => {
      timer = setTimeout(() => {
        const state = client.getChannel().getConnectivityState(false);
        if (state !== connectivityState.READY) reject(noAnswer(connectMsMax));
      }, connectMsMax);
      call(client, new Date(Date.now() + answerMsMax), (error, value) => {
        if (error === null) return resolve(value!);
        const failure = fromServiceError(error as never);
        // What the coordinator itself says has no status of gRPC.
        const isLate = failure.details.status === 'DEADLINE_EXCEEDED';
        reject(isLate ? noAnswer(answerMsMax) : failure);
      });
    });
  } finally {
    clearTimeout(timer);
    client.close();
    tls?.close();
  }
}

function noAnswer(afterMs: number): SwitchyardError {
  return new SwitchyardError('LINK_LOST', `no answer within ${afterMs} ms`);
}

const markCommand = (name: string, mark: WorkerMark, summary: string, done: string) =>
  defineCommand({
    name,
    summary,
    ...sectionOf,
    schema: z.object(markFields),
    help: { ...operatorHelp, worker: ['name', 'the worker, as status names it'] },
    argument: { name: 'worker', text: 'the worker, as status names it' },
    examples: [`switchyard ${name} worker-a`],
    run: async (config) => {
      const { worker } = config;
      if (worker === null)
        throw new SwitchyardError('CONFIG_INVALID', 'worker is missing; allowed: the name of a worker');
      await ask(config, 'Operator', (operator, deadline, answer) =>
        operator.MarkWorker({ worker, mark }, { deadline }, answer),
      );
      process.stdout.write(`${worker}: ${done}\n`);
    },
  });

export const cordonCommand = markCommand(
  'cordon',
  'CORDONED',
  'Give a worker no new copies of experts',
  'gets no new copies',
);
export const drainCommand = markCommand(
  'drain',
  'DRAINED',
  'Bring the copies of a worker elsewhere, as far as there is memory',
  'its copies go elsewhere, as far as others have memory; switchyard status shows how far they are',
);
export const undrainCommand = markCommand(
  'undrain',
  'NO_MARK',
  'Let a worker that was drained or cordoned have copies again',
  'may have copies again',
);

/**
 * The coordinator plans by its own settings and loads: only the plan for a recording has others. That begins from where the copies of the cluster are now, on its
 * live workers: of the recording it has the load, and how fast workers computed. The coordinator's copies and what operators have said of workers hold for both.
 */
async function recordedPlan(
  config: Connection & { recording: string; topology: string | null } & PlanOptions,
) {
  const topology = config.topology === null ? null : readTopology(config.topology);
  const recording = readRecording(config.recording);
  const cluster = await ask<'Inference', ClusterDescription>(
    config,
    'Inference',
    (inference, deadline, done) => inference.DescribeCluster({ placement: true }, { deadline }, done),
  );
  if (cluster.model === null) throw new SwitchyardError('NOT_READY', 'the cluster has no model yet');
  checkModel(config.recording, recording, cluster.model);
  const load = loadOn(recordCluster(cluster), recording);
  const input = planInput(load, topology, config, rulesOf(cluster.view), recording.workers);
  const { target, netGainSeconds, copiesRequired } = plan(input);
  const layers = input.layers.map(({ layer }, index) => copiesMessage(layer, target[index]!));
  const workers = input.workers.map(({ name }) => name);
  return { target: { workers, layers }, netGainSeconds, required: required(copiesRequired, input) };
}

export const rebalanceCommand = defineCommand({
  name: 'rebalance',
  summary: 'Plan for the present load, or for a recorded one, and begin to bring copies of experts there',
  ...sectionOf,
  schema: z.object(rebalanceFields),
  namesInEnvironment: planNamesInEnvironment,
  help: { ...operatorHelp, ...planHelp },
  examples: [
    'switchyard rebalance',
    'switchyard rebalance --recording load.json --topology hosts.yaml --copies 2',
  ],
  run: async (config, _, given) => {
    const { recording } = config;
    if (recording === null) checkUnused(config, given);
    const planned = recording === null ? null : await recordedPlan({ ...config, recording });
    const request = planned === null ? {} : { target: planned.target };
    const answer = await ask<'Operator', RebalanceAnswer>(config, 'Operator', (operator, deadline, done) =>
      operator.Rebalance(request, { deadline }, done),
    );
    const { toLoad, toDrop, bytesToLoad } = answer;
    const gain = planned?.netGainSeconds ?? answer.netGainSeconds;
    const text =
      toLoad + toDrop === 0
        ? 'nothing to move: no change pays'
        : `to load ${count(toLoad)} copies, ${bytes(bytesToLoad)}${planned?.required ?? ''}; to drop ${count(toDrop)}; net gain ${seconds(gain)}`;
    process.stdout.write(`${text}\n`);
  },
});

/** Throws CONFIG_INVALID for what a plan of the coordinator would not heed; the environment may be for other commands. */
function checkUnused(
  config: Record<keyof typeof planFields, unknown>,
  given: ReadonlyMap<string, Origin>,
): void {
  for (const key of Object.keys(planFields) as (keyof typeof planFields)[]) {
    const { [key]: field } = planFields;
    const origin = given.get(key);
    if (origin === undefined || origin.source === 'environment') continue;
    if (config[key] === field.parse(undefined)) continue;
    const allowed = 'only with recording: otherwise the coordinator plans by its own settings';
    const text = `${origin.origin} is ${JSON.stringify(config[key])}; allowed: ${allowed}`;
    throw new SwitchyardError('CONFIG_INVALID', text, { key });
  }
}

import { z } from 'zod';
import { readToken } from '../common/access.js';
import { address, nodeName, presentedTokenFields } from '../common/config.js';
import { SwitchyardError } from '../common/errors.js';
import type { WorkerMark } from '../common/generated/switchyard/v1/WorkerMark.js';
import { connect } from '../common/grpc-channel.js';
import { clients } from '../common/protocol.js';
import { fromServiceError } from '../common/status.js';
import { defineCommand } from './command.js';
import { bytes, count, seconds } from './format.js';

const operatorFields = { address: address().default('127.0.0.1:7070'), ...presentedTokenFields };
const operatorHelp = {
  address: ['host:port', 'the coordinator'],
  token: ['token', "the operator's token; better in SWITCHYARD_TOKEN or --token-file"],
  tokenFile: ['file', 'file that holds the token'],
} as const;

type Connection = { address: string; token: string | null; tokenFile: string | null };
type Operator = InstanceType<typeof clients.Operator>;

const messageBytesMax = 64 * 1024 * 1024;
/** Planning the largest models takes seconds. */
const answerMsMax = 60_000;

/** One call to the coordinator. */
async function ask<Answer>(
  config: Connection,
  call: (
    operator: Operator,
    deadline: Date,
    answer: (error: Error | null, value?: Answer) => void,
  ) => unknown,
): Promise<Answer> {
  const operator = connect(clients.Operator, config.address, { token: readToken(config), messageBytesMax });
  try {
    return await new Promise((resolve, reject) => {
      call(operator, new Date(Date.now() + answerMsMax), (error, value) =>
        error === null ? resolve(value!) : reject(fromServiceError(error as never)),
      );
    });
  } finally {
    operator.close();
  }
}

const markCommand = (name: string, mark: WorkerMark, summary: string, done: string) =>
  defineCommand({
    name,
    summary,
    section: 'operate',
    schema: z.object({ ...operatorFields, worker: nodeName().nullable().default(null) }),
    help: { ...operatorHelp, worker: ['name', 'the worker, as status names it'] },
    argument: { name: 'worker', text: 'the worker, as status names it' },
    examples: [`switchyard ${name} worker-a`],
    run: async (config) => {
      const { worker } = config;
      if (worker === null)
        throw new SwitchyardError('CONFIG_INVALID', 'worker is missing; allowed: the name of a worker');
      await ask(config, (operator, deadline, answer) =>
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
  'its copies go elsewhere; switchyard status shows how far they are',
);
export const undrainCommand = markCommand(
  'undrain',
  'NO_MARK',
  'Let a worker that was drained or cordoned have copies again',
  'may have copies again',
);

export const rebalanceCommand = defineCommand({
  name: 'rebalance',
  summary: 'Plan for the present load, and begin to bring copies of experts there',
  section: 'operate',
  schema: z.object(operatorFields),
  help: operatorHelp,
  examples: ['switchyard rebalance'],
  run: async (config) => {
    const { toLoad, toDrop, bytesToLoad, netGainSeconds } = await ask<{
      toLoad: number;
      toDrop: number;
      bytesToLoad: number;
      netGainSeconds: number;
    }>(config, (operator, deadline, answer) => operator.Rebalance({}, { deadline }, answer as never));
    const text =
      toLoad + toDrop === 0
        ? 'nothing to move: no change pays'
        : `to load ${count(toLoad)} copies, ${bytes(bytesToLoad)}; to drop ${count(toDrop)}; net gain ${seconds(netGainSeconds)}`;
    process.stdout.write(`${text}\n`);
  },
});

import { randomBytes } from 'node:crypto';
import { SwitchyardClient, type SwitchyardError } from '../services/client/index.js';

/** What a process of clients does: `crowd` comes and goes; `lone` has one batch that does not end by itself. */
export type ChurnTask = { address: string; transport: 'grpc' | 'ucx'; hidden: number } & (
  | { kind: 'crowd'; clients: number; batchesOfClient: number; tokens: number }
  | { kind: 'lone' }
);

/** What it says: of a crowd at its end, of a lone client when its first answer has come. */
export interface ChurnWord {
  done: number;
  failed: string[];
}

/** Batches that one connection runs before it goes. */
const batchesOfConnection = 8;

process.once('message', (task: ChurnTask) => {
  const run = task.kind === 'crowd' ? runCrowd(task) : runLone(task);
  run.then(say, (error: Error) => say({ done: 0, failed: [error.message] }));
});

function say(word: ChurnWord): void {
  process.send!(word);
}

async function runCrowd(task: ChurnTask & { kind: 'crowd' }): Promise<ChurnWord> {
  const failed: string[] = [];
  const done = await Promise.all(Array.from({ length: task.clients }, () => runClient(task, failed)));
  return { done: done.reduce((sum, count) => sum + count, 0), failed };
}

/** One client: it connects, runs some batches, goes, and comes again until all its batches are done. */
async function runClient(task: ChurnTask & { kind: 'crowd' }, failed: string[]): Promise<number> {
  const rows = rowsOf(task.tokens, task.hidden);
  let done = 0;
  let begun = 0;
  while (begun < task.batchesOfClient) {
    const client = await SwitchyardClient.connect(task.address, {
      transport: task.transport,
      timeoutMs: 60_000,
    });
    const last = Math.min(task.batchesOfClient, begun + batchesOfConnection);
    for (; begun < last; begun += 1) {
      try {
        const call = await client.forward(rows, { feedback: false });
        await call.collect();
        done += 1;
      } catch (error) {
        const { code, message } = error as SwitchyardError;
        failed.push(`${code}: ${message}`);
      }
    }
    await client.close();
  }
  return done;
}

/** BF16 from 0.5 to 1 and from -1 to -0.5: different experts are chosen. */
function rowsOf(tokens: number, hidden: number): Uint8Array {
  const rows = randomBytes(tokens * hidden * 2);
  for (let at = 1; at < rows.byteLength; at += 2) rows[at] = 0x3f | (rows[at]! & 0x80);
  return rows;
}

async function runLone({ address, transport, hidden }: ChurnTask): Promise<ChurnWord> {
  const client = await SwitchyardClient.connect(address, { transport, timeoutMs: 60_000 });
  const block = rowsOf(8_192, hidden);
  const call = await client.forward(
    { tokens: 1e9, hidden, read: (_, count) => block.subarray(0, count * hidden * 2) },
    { sequences: 1, length: 1e9, feedback: false },
  );
  let answers = 0;
  for await (const _ of call) {
    answers += 1;
    if (answers === 1) say({ done: 0, failed: [] });
  }
  return { done: 1, failed: ['a batch without an end has ended'] };
}

import {
  type AnswerChunk,
  type BatchSummary,
  type FileRows,
  type ModelDescription,
  type RowsReader,
  rowsInFile,
  type SwitchyardClient,
} from '../client/index.js';
import { invalidArgument } from '../common/errors.js';
import { assertApart, OutputFile } from '../common/output-file.js';
import { type BatchConfig, forwardOptions, syntheticBatch } from './batch-options.js';
import { Progress } from './progress.js';
import { BatchRecorder } from './record-batch.js';
import { syntheticRows } from './synthetic-rows.js';
import { type BatchTokenIds, tokenIdsOf } from './token-ids.js';
import { type BatchInput, Sample, type Verification } from './verify.js';

export interface BatchReport {
  summary: BatchSummary;
  /** Elements of a row. */
  hidden: number;
  /** Null if the batch was not to be verified. */
  verification: Verification | null;
}

/**
 * Submits the batch that the configuration means, takes its answers where they go, and verifies a sample if asked to.
 * `onAnswered` is awaited between the last answer and the verification.
 */
export async function runBatch(
  client: SwitchyardClient,
  config: BatchConfig,
  signal: AbortSignal,
  onAnswered: () => Promise<void> = async () => {},
): Promise<BatchReport> {
  const { output: outputPath, returnRouting, record } = config;
  assertApart({ output: outputPath, returnRouting, record });
  const model = await client.describeModel();
  const rows = await openInput(config, model);
  const outputs: Output[] = [];
  let tokenIds: BatchTokenIds | null = null;
  try {
    tokenIds = await tokenIdsOf(config, model, rows.tokens);
    if (outputPath !== null) outputs.push(await rowsOutput(outputPath, rows, signal));
    if (returnRouting !== null) outputs.push(await routingOutput(returnRouting, model, signal));
    if (record !== null) {
      const file = await OutputFile.open('record', record, signal);
      outputs.push(new BatchRecorder(file, client, model, config.layers, rows.tokens));
    }
    const sample = config.verify === null ? null : Sample.choose(rows.tokens, config.verify, config.seed);
    const input = { rows, tokenIds };
    const summary = await stream(client, config, input, outputs, sample, signal);
    await onAnswered();
    for (const output of outputs) await output.close(summary);
    const verification = sample && (await sample.verify(model, input, config));
    await rows.close?.();
    await tokenIds?.close?.();
    return { summary, hidden: model.hidden, verification };
  } catch (error) {
    for (const output of outputs) await output.abort();
    // Not waited for: what is read of it may never come.
    rows.close?.()?.catch(() => {});
    tokenIds?.close?.()?.catch(() => {});
    throw error;
  }
}

async function stream(
  client: SwitchyardClient,
  config: BatchConfig,
  { rows, tokenIds }: BatchInput,
  outputs: readonly Output[],
  sample: Sample | null,
  signal: AbortSignal,
): Promise<BatchSummary> {
  const progress = new Progress(rows.tokens);
  try {
    const { close: _ownedByCaller, ...input } = rows;
    const call = await client.forward(input, {
      ...forwardOptions(config),
      ...(tokenIds && { tokenIds: tokenIds.read }),
      returnRouting: sample !== null || config.returnRouting !== null || config.record !== null,
      signal,
    });
    return await call.into({
      write: async (first, part, routing) => {
        const count = part.byteLength / (rows.hidden * 2);
        const chunk = { first, count, rows: part, routing };
        for (const output of outputs) await output.write(chunk);
        sample?.take(chunk, rows.hidden);
        progress.add(count);
      },
    });
  } finally {
    progress.stop();
  }
}

async function openInput(config: BatchConfig, model: ModelDescription): Promise<RowsReader | FileRows> {
  if (config.input !== null && config.skew !== null)
    throw invalidArgument('skew', config.skew, 'none where input names a file: it is of synthetic rows');
  if (config.input !== null) return rowsInFile(config.input, config.tensor, model.hidden);
  if (config.tensor !== null)
    throw invalidArgument('tensor', config.tensor, 'none, unless input names a file');
  return syntheticRows(model.hidden, syntheticBatch(config, model));
}

/** Something that is made of the answers: there when all have come, or not at all. */
export interface Output {
  write(chunk: AnswerChunk): Promise<void>;
  close(summary: BatchSummary): Promise<void>;
  abort(): Promise<void>;
}

/** The output has the input's shape; a tensor keeps its name. */
async function rowsOutput(path: string, rows: RowsReader | FileRows, signal: AbortSignal): Promise<Output> {
  const { createRowsWriter } = await import('../model/rows-file.js');
  const file = 'shape' in rows ? rows : null;
  const sequences = rows.sequences ?? 1;
  const shape = file?.shape ?? [sequences, rows.tokens / sequences, rows.hidden];
  const writer = await createRowsWriter(path, { tensor: file?.tensor ?? 'rows', shape }, signal);
  return {
    write: ({ first, rows: part }) => writer.write(first, part),
    close: () => writer.close(),
    abort: () => writer.abort(),
  };
}

/** One line per chunk: its first token, and experts and weights as [tokens][layers][topK]. */
async function routingOutput(path: string, model: ModelDescription, signal: AbortSignal): Promise<Output> {
  const file = await OutputFile.open('returnRouting', path, signal);
  const topK = model.routing?.topK ?? 1;
  const nested = (values: Uint32Array | Float32Array, tokens: number) => {
    const layers = values.length / tokens / topK;
    const at = (token: number, layer: number) => (token * layers + layer) * topK;
    return Array.from({ length: tokens }, (_, token) =>
      Array.from({ length: layers }, (_, layer) => [
        ...values.subarray(at(token, layer), at(token, layer) + topK),
      ]),
    );
  };
  return {
    write: async ({ first, count, routing }) => {
      if (!routing) return;
      const line = {
        first,
        experts: nested(routing.experts, count),
        weights: nested(routing.weights, count),
      };
      await file.write(Buffer.from(`${JSON.stringify(line)}\n`));
    },
    close: () => file.close(),
    abort: () => file.abort(),
  };
}

import type { AnswerChunk, BatchSummary, ModelDescription, SwitchyardClient } from '../client/index.js';
import type { OutputFile } from '../common/output-file.js';
import type { Output } from './batch.js';
import { describeMeasured, recordCluster, tokensSampledMax, writeRecording } from './recording.js';

/** Writes what the tokens of a batch chose, and where their experts are, for `switchyard plan`. */
export class BatchRecorder implements Output {
  /** Numbers of the batch's layers. */
  private readonly layers: readonly number[];
  /** By layer: the experts of the sampled tokens, one after the other. */
  private readonly choices: readonly number[][];
  /** One of so many tokens is kept. */
  private readonly stride: number;
  private readonly topK: number;

  /** `range`: layers of the batch; null: all. */
  constructor(
    private readonly file: OutputFile,
    private readonly client: SwitchyardClient,
    model: ModelDescription,
    range: { first: number; last: number } | null,
    tokens: number,
  ) {
    this.layers = model.layers
      .map(({ layer }) => layer)
      .filter((layer) => range === null || (layer >= range.first && layer <= range.last));
    this.choices = this.layers.map(() => []);
    this.topK = model.routing?.topK ?? 1;
    this.stride = Math.ceil(tokens / tokensSampledMax);
  }

  async write({ first, count, routing }: AnswerChunk): Promise<void> {
    const { choices, stride, topK } = this;
    if (!routing) return;
    for (let token = (stride - (first % stride)) % stride; token < count; token += stride) {
      for (const [index, kept] of choices.entries()) {
        const at = (token * choices.length + index) * topK;
        kept.push(...routing.experts.subarray(at, at + topK));
      }
    }
  }

  async close(summary: BatchSummary): Promise<void> {
    const recorded = recordCluster(await describeMeasured(this.client));
    const rowsOf = new Map(summary.layers.map(({ layer, rows }) => [layer, rows]));
    const layers = recorded.layers.map((layer) => ({
      ...layer,
      rows: rowsOf.get(layer.layer) ?? layer.workersOf.map(() => 0),
      choices: this.choices[this.layers.indexOf(layer.layer)] ?? null,
    }));
    await writeRecording(this.file, { ...recorded, layers, seconds: summary.seconds });
  }

  abort(): Promise<void> {
    return this.file.abort();
  }
}

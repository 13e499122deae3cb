import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { SwitchyardError } from '../common/errors.js';
import { missingTensor, SafetensorsFile } from './safetensors.js';
import { fileInvalid } from './safetensors-header.js';

const singleName = 'model.safetensors';
const indexName = 'model.safetensors.index.json';
/** An index of the largest known checkpoints is below 20 MB. */
const jsonBytesMax = 256 * 1024 * 1024;

const indexSchema = z.object({
  weight_map: z.record(
    z.string(),
    z
      .string()
      .regex(/^[^/\\]+\.safetensors$/, 'must be the name of a .safetensors file in the same directory'),
  ),
});

/** The weight files of a Hugging Face directory: one file, or shards under an index. */
export class CheckpointFiles {
  readonly #files = new Map<string, SafetensorsFile>();

  private constructor(
    readonly directory: string,
    /** Tensor to file name; null: one file holds all. */
    private readonly weightMap: ReadonlyMap<string, string> | null,
  ) {}

  /** Reads the index, or the header of the only file. Rejects with MODEL_INVALID. */
  static async open(directory: string): Promise<CheckpointFiles> {
    const index = join(directory, indexName);
    if (await exists(index)) {
      const { weight_map: weightMap } = parseJsonFile(index, await readJson(index), indexSchema);
      return new CheckpointFiles(directory, new Map(Object.entries(weightMap)));
    }
    if (!(await exists(join(directory, singleName)))) {
      throw new SwitchyardError('MODEL_INVALID', `${directory}: has neither ${singleName} nor ${indexName}`, {
        directory,
      });
    }
    const files = new CheckpointFiles(directory, null);
    await files.#open(singleName);
    return files;
  }

  has(tensor: string): boolean {
    if (this.weightMap !== null) return this.weightMap.has(tensor);
    return this.#files.get(singleName)!.header.tensors.has(tensor);
  }

  /** Opens the files that hold these tensors, and no others. A tensor in no file is MODEL_INVALID. */
  async openFor(tensors: Iterable<string>): Promise<void> {
    for (const tensor of tensors) await this.#open(this.#fileOf(tensor));
  }

  /** The file of a tensor that was named to `openFor`. */
  file(tensor: string): SafetensorsFile {
    const file = this.#files.get(this.#fileOf(tensor));
    if (file === undefined) throw new SwitchyardError('INTERNAL', `the file of ${tensor} is not open`);
    return file;
  }

  /** Over the sizes, headers and samples of the files that are open. */
  digest(): string {
    const hash = createHash('sha256');
    for (const name of [...this.#files.keys()].sort()) {
      hash.update(`${name}\0${this.#files.get(name)!.digest}\n`);
    }
    return hash.digest('hex');
  }

  close(): void {
    for (const file of this.#files.values()) file.close();
  }

  #fileOf(tensor: string): string {
    if (this.weightMap === null) return singleName;
    const name = this.weightMap.get(tensor);
    if (name === undefined) throw missingTensor(tensor, join(this.directory, indexName));
    return name;
  }

  async #open(name: string): Promise<void> {
    if (this.#files.has(name)) return;
    this.#files.set(name, await SafetensorsFile.open(join(this.directory, name)));
  }
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    (found) => found.isFile(),
    () => false,
  );
}

/** The content of a JSON file of bounded size. Rejects with MODEL_INVALID. */
export async function readJson(path: string): Promise<unknown> {
  try {
    const { size } = await stat(path);
    if (size > jsonBytesMax) throw new Error(`it has ${size} bytes; allowed: up to ${jsonBytesMax}`);
    return JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    const message = `${path}: cannot be read as JSON: ${(error as Error).message}`;
    throw new SwitchyardError('MODEL_INVALID', message, { file: path });
  }
}

/** `json` checked by `schema`. Throws MODEL_INVALID that names the file, the key, the value, what is allowed. */
export function parseJsonFile<T>(file: string, json: unknown, schema: z.ZodType<T>): T {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const { path, message } = parsed.error.issues[0]!;
  let value: unknown = json;
  for (const key of path) value = (value as Record<PropertyKey, unknown> | undefined)?.[key];
  throw fileInvalid(file, null, path.join('.') || 'content', JSON.stringify(value), message);
}

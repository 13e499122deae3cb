import { createHash } from 'node:crypto';
import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { SwitchyardError } from '../common/errors.js';
import { DigestCache } from './digest-cache.js';
import type { HashProgress } from './hash-progress.js';
import { parseJsonFile, readJson } from './json-file.js';
import { SafetensorsFile } from './safetensors.js';
import { tensorMissing } from './safetensors-header.js';

const singleName = 'model.safetensors';
const indexName = 'model.safetensors.index.json';
/** Of each kind of file, in an error. */
const namesShown = 5;

const indexSchema = z.object({
  weight_map: z.record(
    z.string(),
    z.string().regex(/^[^/\\]+\.safetensors$/, 'the name of a .safetensors file in the same directory'),
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
    const single = join(directory, singleName);
    const hasSingle = await exists(single);
    if (await exists(index)) {
      const { weight_map: weightMap } = parseJsonFile(index, await readJson(index), indexSchema);
      if (hasSingle && !Object.values(weightMap).includes(singleName)) {
        const message = `${directory}: has weights twice: in ${singleName}, and in the files that ${indexName} names; remove those that are not meant`;
        throw new SwitchyardError('MODEL_INVALID', message, { file: single, index });
      }
      return new CheckpointFiles(directory, new Map(Object.entries(weightMap)));
    }
    if (!hasSingle) throw await noWeights(directory);
    const files = new CheckpointFiles(directory, null);
    await files.#open(singleName);
    return files;
  }

  has(tensor: string): boolean {
    return this.#names().has(tensor);
  }

  /** The shape of a tensor whose file is open; null: it is not, or there is no such tensor. */
  shapeOf(tensor: string): readonly number[] | null {
    return this.has(tensor)
      ? (this.#files.get(this.fileName(tensor))?.header.tensors.get(tensor)?.shape ?? null)
      : null;
  }

  /** Opens the files that hold these tensors, and no others. A tensor in no file is MODEL_INVALID. */
  async openFor(tensors: Iterable<string>): Promise<void> {
    for (const tensor of tensors) await this.#open(this.fileName(tensor));
  }

  /** The file of a tensor that was named to `openFor`. */
  file(tensor: string): SafetensorsFile {
    const file = this.#files.get(this.fileName(tensor));
    if (file === undefined) throw new SwitchyardError('INTERNAL', `the file of ${tensor} is not open`);
    return file;
  }

  /** Over every byte of the files that are open. It is the same on every host that has the same files. */
  async digest(progress: HashProgress): Promise<string> {
    const cache = new DigestCache();
    const hash = createHash('sha256');
    const names = [...this.#files.keys()].sort();
    progress.begin([...this.#files.values()].reduce((sum, { byteLength }) => sum + byteLength, 0));
    for (const name of names) {
      hash.update(`${name}\0${await this.#files.get(name)!.digest(cache, progress)}\n`);
    }
    progress.end();
    return hash.digest('hex');
  }

  close(): void {
    for (const file of this.#files.values()) file.close();
  }

  /** The name of the file that holds a tensor. Throws MODEL_INVALID if none does. */
  fileName(tensor: string): string {
    if (!this.has(tensor)) {
      const file = join(this.directory, this.weightMap === null ? singleName : indexName);
      throw tensorMissing(file, tensor, this.#names());
    }
    return this.weightMap?.get(tensor) ?? singleName;
  }

  #names(): Pick<ReadonlyMap<string, unknown>, 'has' | 'keys'> {
    return this.weightMap ?? this.#files.get(singleName)!.header.tensors;
  }

  async #open(name: string): Promise<void> {
    if (this.#files.has(name)) return;
    const path = join(this.directory, name);
    if (this.weightMap !== null && !(await exists(path))) {
      const message = `${path}: is missing, and ${indexName} beside it says that it holds weights`;
      throw new SwitchyardError('MODEL_INVALID', message, { file: path });
    }
    this.#files.set(name, await SafetensorsFile.open(path));
  }
}

/** Whether there is something of this name, be it a link that leads nowhere. */
async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return false;
    throw new SwitchyardError('MODEL_INVALID', `${path}: cannot be read: ${message}`, { file: path });
  }
}

/** What a directory without the usual weight files may have instead, and what to do about it. */
const otherWeights: readonly [pattern: RegExp, hint: string][] = [
  [
    /-\d+-of-\d+\.safetensors$/,
    `are shards, and ${indexName}, which says what each of them holds, is missing: copy it from where they came from`,
  ],
  [
    /^consolidated.*\.safetensors$/,
    'has the names of another format: use the files that Hugging Face transformers reads',
  ],
  [/\.safetensors$/, `has another name than ${singleName}`],
  [
    /\.(bin|pt|pth|gguf|ckpt|h5|msgpack)$/,
    'is no safetensors file: convert the model, or fetch it as safetensors',
  ],
];

async function noWeights(directory: string): Promise<SwitchyardError> {
  const names = await readdir(directory).catch(() => []);
  let message = `${directory}: has neither ${singleName} nor ${indexName}`;
  for (const [pattern, hint] of otherWeights) {
    const found = names.filter((name) => pattern.test(name)).sort();
    if (found.length === 0) continue;
    const more = found.length > namesShown ? ` and ${found.length - namesShown} more` : '';
    message += `; ${found.slice(0, namesShown).join(', ')}${more} ${hint}`;
    break;
  }
  return new SwitchyardError('MODEL_INVALID', message, { directory });
}

import { SwitchyardError } from '../common/errors.js';

const pointerStart = Buffer.from('version https://git-lfs.github.com/spec/');

/** Throws MODEL_INVALID if a file that begins so is what Git leaves in place of a large file that was not fetched. */
export function refuseLfsPointer(file: string, start: Uint8Array): void {
  if (Buffer.compare(start.subarray(0, pointerStart.byteLength), pointerStart) !== 0) return;
  const message = `${file}: is a Git LFS pointer and not the file that it stands for; fetch it: git lfs pull`;
  throw new SwitchyardError('MODEL_INVALID', message, { file });
}

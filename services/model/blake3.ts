import { createRequire } from 'node:module';
import type { Blake3Hasher } from '@napi-rs/blake-hash';
import { SwitchyardError } from '../common/errors.js';

type Library = typeof import('@napi-rs/blake-hash');

/** A hasher of BLAKE3. Its library, native code for each platform, is loaded by need. Throws INTERNAL where there is none. */
export function createBlake3(): Blake3Hasher {
  const library = load();
  if (library instanceof SwitchyardError) throw library;
  return new library.Blake3Hasher();
}

/** Why files cannot be hashed here; null: they can. */
export function whyNoBlake3(): string | null {
  const library = load();
  return library instanceof SwitchyardError ? library.message : null;
}

function load(): Library | SwitchyardError {
  try {
    return createRequire(import.meta.url)('@napi-rs/blake-hash') as Library;
  } catch (error) {
    const text = `files of weights cannot be hashed: the package @napi-rs/blake-hash has no code for ${process.platform}-${process.arch} here; allowed: an installation with optional dependencies, which bring it`;
    return new SwitchyardError('INTERNAL', text, {}, { cause: error });
  }
}

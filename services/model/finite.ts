import {
  type ExpertSource,
  type NonFiniteWeights,
  native,
  type Slab,
  type TensorSource,
} from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { Logger } from '../common/log.js';
import type { ModelSource } from './spec.js';

/** What becomes of weights that are NaN or infinite. */
export class FiniteWeights {
  private readonly allowed: boolean;

  /** @param source as the coordinator describes it: what it allows holds for the whole cluster. */
  constructor(
    source: ModelSource,
    private readonly log: Logger,
  ) {
    this.allowed = source.kind === 'checkpoint' && source.allowNonFiniteWeights === true;
  }

  /** Throws MODEL_INVALID, which names file and tensor, if `count` values of it are not finite and that is not allowed. */
  check(source: TensorSource | null | undefined, count: number): void {
    if (count === 0 || source?.kind !== 'file') return;
    if (!this.allowed)
      throw nonFinite(source, count, 'none, unless the coordinator runs with --allow-non-finite-weights');
    this.log.warn({ event: 'non-finite-weights', file: source.file.path, tensor: source.tensor, count });
  }

  checkExpert({ gate, up, down, bias, latent, extraBias }: ExpertSource, counts: NonFiniteWeights): void {
    this.check(gate, counts.gate);
    this.check(up, counts.up);
    this.check(down, counts.down);
    this.check(bias?.gate, counts.gateBias);
    this.check(bias?.up, counts.upBias);
    this.check(bias?.down, counts.downBias);
    this.check(latent?.input, counts.latentInput);
    this.check(latent?.inputBias, counts.latentBias);
    this.check(latent?.output, counts.latentOutput);
    this.check(extraBias, counts.extraBias);
  }
}

/** MODEL_INVALID, which names file and tensor: so many of its values are not finite. */
export function nonFinite(source: TensorSource & { kind: 'file' }, count: number, allowed: string) {
  const { tensor } = source;
  const file = source.file.path;
  const message = `${file}: tensor ${JSON.stringify(tensor)} holds ${count} weights that are NaN or infinite in the precision in which they are served; allowed: ${allowed}`;
  return new SwitchyardError('MODEL_INVALID', message, { file, tensor, count });
}

/** Of BF16 values. */
export function countNonFiniteBf16(slab: Slab): number {
  return viewed(slab, ({ buffer, byteOffset, byteLength }) => {
    const bits = new Uint16Array(buffer, byteOffset, byteLength / 2);
    return bits.reduce((count, value) => count + ((value & 0x7f80) === 0x7f80 ? 1 : 0), 0);
  });
}

/** Of float32 values. */
export function countNonFiniteFloats(slab: Slab): number {
  return viewed(slab, ({ buffer, byteOffset, byteLength }) => {
    const values = new Float32Array(buffer, byteOffset, byteLength / 4);
    return values.reduce((count, value) => count + (Number.isFinite(value) ? 0 : 1), 0);
  });
}

function viewed(slab: Slab, count: (bytes: Uint8Array) => number): number {
  const bytes = slab.view();
  const counted = count(bytes);
  native.endView(bytes);
  return counted;
}

import { z } from 'zod';
import { fileInvalid } from './safetensors-header.js';

const schema = z.object({
  text_config: z.object({ model_type: z.unknown().optional() }).optional(),
  quantization_config: z.unknown().optional(),
});

/** Throws MODEL_INVALID for a config.json of a kind that would be misread, naming the kind. */
export function refuseUnsupported(configFile: string, json: unknown): void {
  const parsed = schema.safeParse(json);
  if (!parsed.success) return;
  const { text_config: nested, quantization_config: quantization } = parsed.data;
  if (nested !== undefined) {
    const value = `the ${JSON.stringify(nested.model_type)} within a model of several parts`;
    throw fileInvalid(configFile, null, 'text_config', value, 'the config.json of a language model alone');
  }
  if (quantization !== undefined && quantization !== null) {
    const allowed =
      'none: quantised weights are not supported (if the weights were converted back, remove the key)';
    throw fileInvalid(configFile, null, 'quantization_config', JSON.stringify(quantization), allowed);
  }
}

/**
 * Names of the tensors that stand beside a quantised one, as its scales or its packed values: compressed-tensors and FP8
 * write the first ones, MXFP4 the next, GPTQ and AWQ the last.
 */
export function quantisedNames(tensor: string): string[] {
  const base = tensor.replace(/\.weight$/, '');
  return [
    ...['_scale', '_scale_inv', '_scales', '_packed', '_blocks'].map((suffix) => `${tensor}${suffix}`),
    ...['.scales', '.qweight', '.qzeros'].map((suffix) => `${base}${suffix}`),
  ];
}

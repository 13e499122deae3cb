import { z } from 'zod';

const counts = z.tuple([z.int().min(1), z.int().min(1)], { error: 'two sizes of at least 1' });
const oneOf = (values: readonly string[]) => values.map((value) => JSON.stringify(value)).join(', ');
const one = <const Value extends string>(...values: Value[]) => z.enum(values, { error: oneOf(values) });

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Keys that are not known are refused, but for those that are null: what they stand for is not there. */
function known<Shape extends z.ZodRawShape>(shape: Shape) {
  const isMeant = ([key, value]: [string, unknown]) => value !== null || Object.hasOwn(shape, key);
  return z.preprocess(
    (value) => (isObject(value) ? Object.fromEntries(Object.entries(value).filter(isMeant)) : value),
    z.strictObject(shape),
  );
}

/** Values by any name but the one that zod leaves out without a word. */
function byName<Value extends z.ZodType>(value: Value) {
  const lost = '__proto__';
  return z
    .unknown()
    .superRefine((input, context) => {
      if (isObject(input) && Object.hasOwn(input, lost))
        context.addIssue({ code: 'custom', path: [lost], message: 'another name' });
    })
    .pipe(z.record(z.string(), value));
}

/** Of a key that changes no value here: which weights are quantised, the tensors tell, and activations are computed as they are. */
const unread = z.unknown().optional();

const always = {
  quant_method: unread,
  activation_scheme: unread,
  dequantize: unread,
  ignored_layers: unread,
  kv_cache_scheme: unread,
  modules_to_convert: unread,
  modules_to_not_convert: unread,
  packed_modules_mapping: unread,
};

/** FineGrainedFP8Config of transformers, and what publishers write beside it. */
export const fp8Schema = known({
  ...always,
  fmt: one('e4m3', 'float8_e4m3fn').nullish(),
  weight_block_size: counts.nullish(),
  scale_fmt: unread,
  expert_dtype: one('fp8', 'fp4').nullish(),
});

export const mxfp4Schema = known(always);

/** What `format` may be of a group, and of all of them. */
const formats = [
  'pack-quantized',
  'int-quantized',
  'float-quantized',
  'naive-quantized',
  'mxfp4-pack-quantized',
] as const;
/** What says of something that there is none of it. */
const nothing = (error: string, isNothing = (_: Record<string, unknown>) => false) =>
  z.custom((value) => isObject(value) && (Object.keys(value).length === 0 || isNothing(value)), { error });

/** As QuantizationArgs of compressed-tensors has them; what is not given is as it is there. */
const weightsSchema = known({
  num_bits: z.union([z.literal(4), z.literal(8)], { error: '4 or 8' }).default(8),
  type: one('int', 'float').default('int'),
  strategy: one('tensor', 'channel', 'group', 'block').nullish(),
  group_size: z.int().min(-1).nullish(),
  block_structure: counts.nullish(),
  symmetric: z.boolean({ error: 'true or false' }).default(true),
  actorder: z
    .union([z.boolean(), z.enum(['group', 'weight', 'static', 'dynamic'])], {
      error: '"group", "weight", "static", "dynamic", true or false',
    })
    .nullish(),
  // What made the codes, not what they mean.
  dynamic: unread,
  observer: unread,
  observer_kwargs: unread,
  scale_dtype: unread,
  zp_dtype: unread,
});

const groupSchema = known({
  /** Null: of activations alone. */
  weights: weightsSchema.nullish(),
  format: one(...formats).nullish(),
  targets: unread,
  input_activations: unread,
  output_activations: unread,
});

/** Of weights that are stored as dense ones. */
const sparsitySchema = known({
  format: unread,
  targets: unread,
  ignore: unread,
  global_sparsity: unread,
  sparsity_structure: unread,
});

export const compressedSchema = known({
  quant_method: unread,
  format: one(...formats, 'mixed-precision'),
  config_groups: byName(groupSchema).refine((groups) => Object.keys(groups).length > 0, 'one group at least'),
  sparsity_config: nothing('none: sparse weights are not supported', ({ format }) => format === 'dense')
    .pipe(sparsitySchema)
    .nullish(),
  transform_config: nothing('none: weights that were transformed are not supported').nullish(),
  ignore: unread,
  kv_cache_scheme: unread,
  global_compression_ratio: unread,
  quantization_status: unread,
  run_compressed: unread,
  version: unread,
});

export const methodSchema = z.object({ quant_method: one('fp8', 'mxfp4', 'compressed-tensors') });

export type CompressedConfig = z.output<typeof compressedSchema>;
export type CompressedWeights = z.output<typeof weightsSchema>;
export type CompressedFormat = (typeof formats)[number];

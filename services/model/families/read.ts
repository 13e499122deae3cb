import { z } from 'zod';
import { SwitchyardError, shownJson } from '../../common/errors.js';
import { parseJsonFile } from '../json-file.js';
import { fileInvalid } from '../safetensors-header.js';
import { defaults } from './defaults.js';
import type { Family, FamilyConfig } from './family.js';
import { canonicalKeys, kindForEach } from './fields.js';
import { families } from './index.js';

const nested = z.object({
  model_type: z.unknown().optional(),
  text_config: z.record(z.string(), z.unknown()).nullish(),
  llm_config: z.record(z.string(), z.unknown()).nullish(),
  thinker_config: z.object({ text_config: z.record(z.string(), z.unknown()) }).nullish(),
  quantization_config: z.unknown().optional(),
});

/**
 * What config.json says: of a language model, or of one within a model of several parts. Throws MODEL_INVALID, which names the key as the
 * file has it.
 */
export function readFamily(
  file: string,
  json: unknown,
): { family: Family; config: FamilyConfig; quantization: unknown } {
  const outer = parseJsonFile(file, json, nested);
  const text =
    outer.thinker_config?.text_config ??
    outer.text_config ??
    outer.llm_config ??
    (json as Record<string, unknown>);
  const found = find(text.model_type) ?? find(outer.model_type);
  if (found === undefined) {
    const value = shownJson(text.model_type ?? outer.model_type);
    throw fileInvalid(file, null, 'model_type', value, families.flatMap(({ types }) => types).join(', '));
  }
  const { family, type } = found;
  const around = json as Record<string, unknown>;
  const outerKeys = family.outerKeys?.map((key) => [key, around[key]]) ?? [];
  const { keys: there, given } = canonicalKeys({ ...Object.fromEntries(outerKeys), ...text });
  const keys = completed(there, canonicalKeys(defaults[type]!).keys);
  const quantization = outer.quantization_config ?? text.quantization_config;
  try {
    parseJsonFile(file, keys, kindForEach);
    return { family, config: parseJsonFile(file, keys, family.config), quantization };
  } catch (error) {
    throw named(error, given);
  }
}

/** A family, and the type that it has for this one. */
function find(modelType: unknown): { family: Family; type: string } | undefined {
  const types = families.flatMap((family) => family.types.map((type) => ({ family, type })));
  return types.find(({ type }) => type === modelType || `${type}_text` === modelType);
}

/** `keys`, and of `others` those that are not there; of what is an object in both, its keys too. */
function completed(keys: Keys, others: Keys): Keys {
  const given = Object.entries(keys).filter(([, value]) => value !== undefined);
  const whole = given.map(([key, value]) => {
    const other = others[key];
    return [key, isObject(value) && isObject(other) ? { ...other, ...value } : value];
  });
  return { ...others, ...Object.fromEntries(whole) };
}

type Keys = Record<string, unknown>;

function isObject(value: unknown): value is Keys {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** An error by the key that the file has, in place of the one that families use. */
function named(error: unknown, given: Readonly<Record<string, string>>): unknown {
  if (!(error instanceof SwitchyardError)) return error;
  const { field, value, allowed } = error.details as { field?: string; value?: string; allowed?: string };
  const key = given[field ?? ''];
  if (key === undefined) return error;
  return fileInvalid(String(error.details.file), null, key, value, allowed!);
}

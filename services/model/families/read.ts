import { z } from 'zod';
import { SwitchyardError, shownJson } from '../../common/errors.js';
import { parseJsonFile } from '../json-file.js';
import { fileInvalid } from '../safetensors-header.js';
import type { Family, FamilyConfig } from './family.js';
import { canonicalKeys } from './fields.js';
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
  const family = find(text.model_type) ?? find(outer.model_type);
  if (family === undefined) {
    const value = shownJson(text.model_type ?? outer.model_type);
    throw fileInvalid(file, null, 'model_type', value, families.flatMap(({ types }) => types).join(', '));
  }
  const around = json as Record<string, unknown>;
  const outerKeys = family.outerKeys?.map((key) => [key, around[key]]) ?? [];
  const { keys, given } = canonicalKeys({ ...Object.fromEntries(outerKeys), ...text });
  const quantization = outer.quantization_config ?? text.quantization_config;
  try {
    return { family, config: parseJsonFile(file, keys, family.config), quantization };
  } catch (error) {
    throw named(error, given);
  }
}

function find(type: unknown): Family | undefined {
  return families.find(({ types }) => types.some((each) => each === type || `${each}_text` === type));
}

/** An error by the key that the file has, in place of the one that families use. */
function named(error: unknown, given: Readonly<Record<string, string>>): unknown {
  if (!(error instanceof SwitchyardError)) return error;
  const { field, value, allowed } = error.details as { field?: string; value?: string; allowed?: string };
  const key = given[field ?? ''];
  if (key === undefined) return error;
  return fileInvalid(String(error.details.file), null, key, value, allowed!);
}

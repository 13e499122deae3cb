import { Command, Option } from 'commander';
import type { z } from 'zod';
import { type ConfigSection, loadSettings, type NamesInEnvironment, type Origin } from '../common/config.js';

/** How a key of a schema is shown: the name of its value ([name]: may be left out; null: a switch), and what it does. */
export type OptionHelp = readonly [value: string | null, text: string];

export interface CommandDefinition<Shape extends z.ZodRawShape> {
  name: string;
  summary: string;
  /** Top-level key of the YAML file. */
  section: ConfigSection;
  schema: z.ZodObject<Shape>;
  /** Keys of the section that other commands read it for. */
  othersKeys?: readonly string[];
  help: { readonly [Key in keyof Shape]: OptionHelp };
  /** What keys are called in the environment that are not called SWITCHYARD_<KEY> there, because that is a server's key with another meaning. */
  namesInEnvironment?: NamesInEnvironment;
  /** Positional argument, given to the schema under its name. */
  argument?: { name: keyof Shape & string; text: string; choices?: readonly string[] };
  examples: readonly string[];
  /** `file`: the YAML file that was given, for processes that read their own sections of it. `given`: where the values of keys come from. */
  run(
    config: z.infer<z.ZodObject<Shape>>,
    file: string | null,
    given: ReadonlyMap<string, Origin>,
  ): Promise<void>;
}

/**
 * A command whose options are the keys of its schema: each may come as a flag, from SWITCHYARD_<KEY>, or from the
 * command's section of the YAML file given by --config or SWITCHYARD_CONFIG.
 */
export function defineCommand<Shape extends z.ZodRawShape>(definition: CommandDefinition<Shape>): Command {
  const { schema, help, argument, section, namesInEnvironment = {}, othersKeys = [] } = definition;
  const command = new Command(definition.name)
    .summary(definition.summary)
    .description(`${definition.summary}.`);
  if (argument) {
    const choices = argument.choices ? ` (${argument.choices.join(', ')})` : '';
    command.argument(`[${argument.name}]`, `${argument.text}${choices}`);
  }
  for (const key of Object.keys(schema.shape)) {
    if (key !== argument?.name)
      for (const option of optionsOf(schema, key, help[key]!)) command.addOption(option);
  }
  command.option('--config <file>', `YAML file; this command reads its section "${section}"`);
  if (definition.examples.length > 0) {
    command.addHelpText('after', `\nExamples:\n${definition.examples.map((line) => `  ${line}`).join('\n')}`);
  }
  return command.action(async (...parsed: unknown[]) => {
    // The command itself comes last, its options before it, positional arguments first.
    const { config: flag, ...flags } = command.opts<Record<string, unknown> & { config?: string }>();
    if (argument) flags[argument.name] = parsed[0];
    const path = flag ?? (process.env.SWITCHYARD_CONFIG || null);
    const origin = flag === undefined ? 'SWITCHYARD_CONFIG' : '--config';
    const file = path === null ? null : { path, section, origin };
    const positional = argument?.name ?? null;
    const sources = { flags, positional, env: process.env, namesInEnvironment, file, othersKeys };
    const { config, given } = loadSettings(schema, sources);
    await definition.run(config, path, given);
  });
}

function optionsOf<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape>,
  key: string,
  [value, text]: OptionHelp,
): Option[] {
  const name = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  const standard = (schema.shape[key] as unknown as z.ZodType).safeParse(undefined);
  const initial = standard.success ? standard.data : undefined;
  if (value === null) {
    const on = new Option(`--${name}`, text);
    const off = new Option(`--no-${name}`, initial === true ? text : `the opposite of --${name}`);
    // Commander presets --no-x to true; undefined leaves the decision to the other sources.
    on.defaultValue = undefined;
    off.defaultValue = undefined;
    if (initial === true) return [on.hideHelp(), off];
    return initial === false ? [on, off.hideHelp()] : [on, off];
  }
  const shown = initial === undefined || initial === null ? '' : ` (default: ${[initial].flat().join(',')})`;
  return [new Option(`--${name} ${value.startsWith('[') ? value : `<${value}>`}`, `${text}${shown}`)];
}

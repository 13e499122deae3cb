import { createRequire } from 'node:module';

/** The value of a YAML text; throws what `yaml` throws. Its parser is loaded by need: most processes are given no file. */
export function parseYaml(text: string): unknown {
  const { parse } = createRequire(import.meta.url)('yaml') as typeof import('yaml');
  return parse(text);
}

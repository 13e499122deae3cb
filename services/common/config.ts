import { z } from 'zod';
import { addressAllowed, hostAllowed, isAddress, isHost, isWildcard } from './address.js';
import { readBounded } from './bounded-file.js';
import { SwitchyardError, shownJson } from './errors.js';
import { logLevels } from './log.js';
import { isNodeName, nodeNameAllowed } from './node-name.js';
import { checkBy } from './schema-issue.js';
import { isToken, tokenAllowed } from './token.js';
import { parseYaml } from './yaml.js';

/** Top-level keys of the YAML file, one for each command. */
export const configSections = [
  'up',
  'coordinator',
  'router',
  'worker',
  'forward',
  'run',
  'demo',
  'status',
  'plan',
  'operate',
  'bench',
  'simulate',
  'doctor',
] as const;

export type ConfigSection = (typeof configSections)[number];

/** Where the values of a service come from, by precedence: flags, environment, file, defaults of the schema. */
export interface ConfigSources {
  /** By key, as the command line parsed them; undefined: not given. */
  flags?: Readonly<Record<string, unknown>>;
  /** The key among the flags that stands on the command line without its name. */
  positional?: string | null;
  /** `metricsPort` is read from SWITCHYARD_METRICS_PORT. */
  env?: Readonly<Record<string, string | undefined>>;
  /** By key: what it is called in the environment, where servers have a key of its name with another meaning. */
  namesInEnvironment?: NamesInEnvironment;
  /** One YAML file may configure every service; `section` is the service's top-level key. */
  file?: { path: string; section: ConfigSection; origin?: string } | null;
  /** Keys that other commands have in the same section: they are for those. */
  othersKeys?: readonly string[];
}

export type NamesInEnvironment = Readonly<Record<string, string>>;

const suffixes = new Map(
  Object.entries({
    '': 1,
    k: 1e3,
    m: 1e6,
    g: 1e9,
    t: 1e12,
    ki: 2 ** 10,
    mi: 2 ** 20,
    gi: 2 ** 30,
    ti: 2 ** 40,
  }),
);

function humanNumber(unit: string): (value: unknown) => unknown {
  const pattern = new RegExp(`^(\\d+(?:\\.\\d+)?)\\s*([kmgt]i?)?${unit}$`, 'i');
  return (value) => {
    const [, digits, suffix = ''] = (typeof value === 'string' && pattern.exec(value.trim())) || [];
    return digits === undefined ? value : Number(digits) * (suffixes.get(suffix.toLowerCase()) ?? Number.NaN);
  };
}

/** Without `max` what is too much depends on the machine and on other settings: whoever knows it says so. */
const bounded = (min: number, max: number, what: string) => {
  const error =
    max === Number.POSITIVE_INFINITY ? `${what}, at least ${min}` : `${what} from ${min} to ${max}`;
  return z.number({ error }).refine(Number.isInteger, { error }).min(min, { error }).max(max, { error });
};

/** A count: 4096, or "4k", "1M" (powers of 1000), "4Ki" (of 1024). */
export const humanCount = (min: number, max: number, what = 'a whole number such as 4096 or 4k') =>
  z.preprocess(humanNumber(''), bounded(min, max, what));

/** A size in bytes: 1048576, or "1MiB", "512k", "1.5GB". */
export const humanBytes = (min: number, max = Number.POSITIVE_INFINITY) =>
  z.preprocess(humanNumber('b?'), bounded(min, max, 'a size in bytes such as 1048576, 512k or 1MiB'));

/** A number that may come as text. */
export const decimal = (min: number, max: number) => {
  const allowed = `a number from ${min} to ${max}`;
  const toNumber = (value: unknown) =>
    typeof value === 'string' && value.trim() !== '' ? Number(value) : value;
  return z.preprocess(
    toNumber,
    z.number({ error: allowed }).min(min, { error: allowed }).max(max, { error: allowed }),
  );
};

const truths = new Map<unknown, boolean>([
  ['true', true],
  ['1', true],
  ['false', false],
  ['0', false],
]);

/** true or false; the environment has them as text. */
export const toggle = () =>
  z.preprocess((value) => truths.get(value) ?? value, z.boolean({ error: 'true or false' }));

/** Text that is not empty. */
export const text = () => z.string({ error: 'text' }).min(1, { error: 'text that is not empty' });

/** Of whatever is made by chance. */
export const seed = () => humanCount(0, Number.MAX_SAFE_INTEGER);

export const port = () => humanCount(0, 65535);

/** host:port of another process. */
export const address = () => z.string({ error: addressAllowed }).refine(isAddress, { error: addressAllowed });

/** Name of a node, unique in its role. */
export const nodeName = () =>
  z.string({ error: nodeNameAllowed }).refine(isNodeName, { error: nodeNameAllowed });

const addressesAllowed = `${addressAllowed}; several are joined by commas, or are a list in YAML`;

/** One address or several, any of which may do. */
/** Of a server that speaks HTTP. */
const httpUrl = () =>
  z.url({ protocol: /^https?$/, error: 'an http or https URL such as http://127.0.0.1:4318/v1/traces' });

export const addresses = () =>
  z.preprocess(
    (value) => (typeof value === 'string' ? value.split(',').map((part) => part.trim()) : value),
    z
      .array(z.string({ error: addressesAllowed }), { error: addressesAllowed })
      .refine((all) => all.length > 0 && all.every(isAddress), { error: addressesAllowed }),
  );

const listenAllowed =
  'a host name or an IP address of this machine, without scheme, port and brackets; 0.0.0.0 or ::, all addresses';

/** Where a server listens. */
const listenHost = () => z.string({ error: listenAllowed }).refine(isHost, { error: listenAllowed });

/** The host part of an address that others are given. */
export const advertisedHost = () =>
  z
    .string({ error: hostAllowed })
    .refine((host) => isHost(host) && !isWildcard(host), { error: hostAllowed });

const token = () =>
  z.string({ error: tokenAllowed }).refine(isToken, { error: tokenAllowed }).nullable().default(null);
const tokenFile = () => text().nullable().default(null);

const file = () => text().nullable().default(null);

/** Files by which a command trusts a cluster, and is known to it. */
export const presentedTlsFields = { tlsCa: file(), tlsCert: file(), tlsKey: file() };

/** Of servers: they show the certificate to whoever calls, too. */
export const serverTlsFields = { ...presentedTlsFields, tlsClientCa: file() };

/** The token that a command presents to a cluster. */
export const presentedTokenFields = { token: token(), tokenFile: tokenFile() };

/** Of servers that clients call. */
export const clientTokenFields = { clientToken: token(), clientTokenFile: tokenFile() };

/** Spread into every service's schema: where it listens, who may call, what it logs. */
export const serverFields = {
  host: listenHost().default('127.0.0.1'),
  port: port().default(0),
  metricsPort: port().default(0),
  nodeToken: token(),
  nodeTokenFile: tokenFile(),
  operatorToken: token(),
  operatorTokenFile: tokenFile(),
  ...serverTlsFields,
  insecure: toggle().default(false),
  logLevel: z.enum(logLevels).default('info'),
  standstillMs: humanCount(100, 3_600_000).default(30_000),
  /** File for what this process does and when. */
  trace: text().nullable().default(null),
  /** URL of a receiver of OpenTelemetry's traces. */
  otlpEndpoint: httpUrl().nullable().default(null),
  traceSampling: decimal(0, 1).default(0.01),
};

/** Where a value was found. */
export interface Origin {
  /** As the user wrote the key: --metrics-port, SWITCHYARD_METRICS_PORT, or path: section.metricsPort. */
  origin: string;
  /** The source that has it: a later one overrides. */
  source: 'file' | 'environment' | 'flags';
}

interface Found extends Origin {
  value: unknown;
}

const kebab = (key: string) => key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
const environmentName = (key: string) => `SWITCHYARD_${kebab(key).replaceAll('-', '_').toUpperCase()}`;

/**
 * Whether the environment holds no setting but what Kubernetes and Docker say of a service: SWITCHYARD_PORT=tcp://10.0.0.1:7070
 * in every pod beside a Service named switchyard, SWITCHYARD_METRICS_PORT for one named switchyard-metrics, and
 * SWITCHYARD_NAME=/pod/switchyard for a Docker link.
 */
function isServiceLink(key: string, value: string): boolean {
  if (key === 'name') return /^\/[^/]+\/[^/]+$/.test(value);
  return /^(p|.*P)ort$/.test(key) && /^[a-z][a-z0-9+.-]*:\/\/\S+:\d+$/i.test(value);
}

/**
 * The configuration of one service. Throws CONFIG_INVALID with the key, the value and what is allowed;
 * a key that the schema does not have is an error too, except in the environment, which all services share.
 */
export function loadConfig<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape>,
  sources: ConfigSources,
): z.infer<z.ZodObject<Shape>> {
  return loadSettings(schema, sources).config;
}

/** The same, and by key where it was found; those with their default are not in there. */
export function loadSettings<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape>,
  {
    flags = {},
    positional = null,
    env = {},
    namesInEnvironment = {},
    file = null,
    othersKeys = [],
  }: ConfigSources,
): { config: z.infer<z.ZodObject<Shape>>; given: ReadonlyMap<string, Origin> } {
  const found = new Map<string, Found>();
  const take = (key: string, given: Found) => override(found, key, given);
  if (file) {
    const source = 'file';
    for (const [key, value] of Object.entries(readSection(file))) {
      if (othersKeys.includes(key) && !Object.hasOwn(schema.shape, key)) continue;
      const origin = `${file.path}: ${file.section}.${key}`;
      if (key !== 'tls' || !isMapping(value)) take(key, { value, origin, source });
      // `tls: { cert: … }` says the same as `tlsCert: …`.
      else
        for (const [name, path] of Object.entries(value)) {
          const same = `tls${name[0]?.toUpperCase()}${name.slice(1)}`;
          take(same, { value: path, origin: `${origin}.${name}`, source });
        }
    }
  }
  for (const key of Object.keys(schema.shape)) {
    const origin = environmentName(namesInEnvironment[key] ?? key);
    const value = env[origin];
    if (value === undefined || value === '' || isServiceLink(key, value)) continue;
    take(key, { value, origin, source: 'environment' });
  }
  for (const [key, value] of Object.entries(flags)) {
    const origin = key === positional ? key : `--${kebab(key)}`;
    if (value !== undefined) take(key, { value, origin, source: 'flags' });
  }
  const values = Object.fromEntries([...found].map(([key, { value }]) => [key, value]));
  const { data, issue } = checkBy(schema.strict(), values);
  if (issue === null) return { config: data as z.infer<z.ZodObject<Shape>>, given: found };
  const { path, key, value, allowed } = issue;
  const [top, ...below] = path;
  throw invalid(key, [found.get(top!)?.origin ?? top, ...below].join('.'), value, allowed);
}

/** A token's other key: it comes as it is, or as the file that holds it. */
function otherKeyOf(key: string): string | null {
  if (isTokenKey(key)) return `${key}File`;
  const name = key.replace(/File$/, '');
  return name !== key && isTokenKey(name) ? name : null;
}

/** Takes what a source says in place of what those before it do. Throws CONFIG_INVALID if one source says a thing in two ways. */
function override(found: Map<string, Found>, key: string, given: Found): void {
  for (const same of [key, otherKeyOf(key)]) {
    const before = same === null ? undefined : found.get(same);
    if (before === undefined) continue;
    if (before.source !== given.source) found.delete(same!);
    else if (before.value !== null && given.value !== null)
      throw invalid(key, given.origin, given.value, `either this or ${before.origin}`);
  }
  found.set(key, given);
}

const isTokenKey = (key: string) => /^token$|Token$/.test(key);

const fileBytesMax = 16 * 1024 * 1024;

function readSection({
  path,
  section,
  origin = '--config',
}: NonNullable<ConfigSources['file']>): Record<string, unknown> {
  let parsed: unknown;
  try {
    parsed = parseYaml(readBounded(path, fileBytesMax).toString());
  } catch (error) {
    throw invalid(
      'config',
      origin,
      path,
      `a readable YAML file (${(error as Error).message.split('\n')[0]})`,
    );
  }
  if (!isMapping(parsed))
    throw invalid('config', origin, path, 'a YAML mapping with one section per service');
  // A misspelt section would otherwise configure nothing, in silence.
  const stranger = Object.keys(parsed).find((name) => !(configSections as readonly string[]).includes(name));
  if (stranger !== undefined)
    throw invalid('section', `${path}: section`, stranger, configSections.join(', '));
  const content = parsed[section] ?? {};
  if (!isMapping(content))
    throw invalid(section, `${path}: ${section}`, content, 'a mapping of keys to values');
  return content;
}

function isMapping(value: unknown): value is Record<string, unknown> {
  return value !== null && typeof value === 'object' && !Array.isArray(value);
}

function invalid(key: string, origin: string, value: unknown, allowed: string): SwitchyardError {
  // A token in an error would end in a log.
  const shown = isTokenKey(key) ? '(hidden)' : shownJson(value);
  return new SwitchyardError('CONFIG_INVALID', `${origin} is ${shown}; allowed: ${allowed}`, {
    key,
    value: shown,
    allowed,
  });
}

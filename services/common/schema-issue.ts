import type { z } from 'zod';

/** The first thing that a schema found wrong with a value. */
export interface SchemaIssue {
  /** Where it is; empty for the value itself. */
  path: readonly string[];
  /** The same, as `a.b.0`. */
  key: string;
  /** What is there. */
  value: unknown;
  /** In words. */
  allowed: string;
}

/** Checks a value. What is wrong is told in words of the schema, or else in those below, never in zod's. */
export function checkBy<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
): { data: z.infer<Schema>; issue: null } | { data: null; issue: SchemaIssue } {
  const parsed = schema.safeParse(value, { error: allowedBy });
  if (parsed.success) return { data: parsed.data, issue: null };
  const [issue] = parsed.error.issues;
  const stranger = issue!.code === 'unrecognized_keys' ? [issue!.keys[0]!] : [];
  const path = [...issue!.path, ...stranger].map(String);
  const key = path.join('.');
  const found = path.reduce<unknown>(
    (at, step) => (at as Record<string, unknown> | null | undefined)?.[step],
    value,
  );
  const isTop = stranger.length === 1 && path.length === 1 && 'shape' in schema;
  const names = isTop ? Object.keys(schema.shape as object).join(', ') : '';
  const allowed = isTop ? `${noSuchKey}; there are ${names || 'none'}` : issue!.message;
  return { data: null, issue: { path, key, value: found, allowed } };
}

const noSuchKey = 'there is no such key';
const typeNames: Readonly<Record<string, string>> = {
  string: 'text',
  number: 'a number',
  int: 'a whole number',
  boolean: 'true or false',
  object: 'an object',
  record: 'an object',
  array: 'a list',
};
const unitOf: Readonly<Record<string, string>> = { string: ' characters', array: ' entries' };

/** What is allowed where the schema does not say it. */
function allowedBy(issue: z.core.$ZodRawIssue): string {
  switch (issue.code) {
    case 'invalid_type':
      return typeNames[issue.expected] ?? issue.expected;
    case 'invalid_value':
      return issue.values.map(String).join(', ');
    case 'too_small':
      return `${issue.inclusive === false ? 'above' : 'at least'} ${issue.minimum}${unitOf[issue.origin] ?? ''}`;
    case 'too_big':
      return `${issue.inclusive === false ? 'below' : 'at most'} ${issue.maximum}${unitOf[issue.origin] ?? ''}`;
    case 'unrecognized_keys':
      return noSuchKey;
    default:
      return 'another value';
  }
}

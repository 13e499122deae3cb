import type { z } from 'zod';

/** The first thing that a schema found wrong with a value. */
export interface SchemaIssue {
  /** The key, as `a.b.0`; empty for the value itself. */
  key: string;
  /** What is there. */
  value: unknown;
  /** In words. */
  allowed: string;
}

export function firstIssue({ issues }: z.ZodError, checked: unknown): SchemaIssue {
  const { path, message } = issues[0]!;
  let value = checked;
  for (const key of path) value = (value as Record<PropertyKey, unknown> | null | undefined)?.[key];
  return { key: path.join('.'), value, allowed: message };
}

/** How long anything may take: more than on any machine, so that this ends only what hangs. */
const limitMs = 120_000;

/** Reads again until `check` holds of what was read; fails with what was read last. */
export async function until<T>(
  read: () => T | Promise<T>,
  check: (value: T) => boolean = Boolean,
): Promise<T> {
  for (const end = performance.now() + limitMs; ; ) {
    const value = await read();
    if (check(value)) return value;
    if (performance.now() > end)
      throw new Error(`not within ${limitMs} ms: ${JSON.stringify(value)} (${read})`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** What the check scripts share. */

/** What takes so long hangs. */
export const waitMsMax = 120_000;

/** Waits until `condition` resolves with true. */
export async function until(what, condition) {
  for (const start = performance.now(); performance.now() - start < waitMsMax; ) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`in ${waitMsMax / 1000} s not: ${what}`);
}

/** Prints a line for what was checked; ends the run with the output where it does not hold. */
export function check(what, holds, output = '') {
  if (!holds) throw new Error(`${what}: no\n${output}`);
  process.stdout.write(`ok  ${what}\n`);
}

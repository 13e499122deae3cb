/** Arguments of the scripts: what is wrong with one ends the script with 2 and a line that says so. */
import { parseArgs } from 'node:util';

/** Ends with 2. */
export function refuse(text) {
  process.stderr.write(`${text}\n`);
  process.exit(2);
}

/** As util.parseArgs: options by their names, which are the only ones allowed. */
export function readArguments(config) {
  try {
    return parseArgs(config);
  } catch (error) {
    const names = Object.keys(config.options).map((name) => `--${name}`);
    refuse(`${error.message.split(/[.\n]/)[0]}; allowed: ${names.join(', ')}`);
  }
}

export function wholeNumber(option, text, min, max = Number.MAX_SAFE_INTEGER) {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min && value <= max) return value;
  refuse(`--${option} is ${JSON.stringify(text)}; allowed: a whole number from ${min} to ${max}`);
}

export function oneOf(what, value, allowed) {
  if (allowed.includes(value)) return value;
  refuse(`${what} is ${JSON.stringify(value)}; allowed: ${allowed.join(', ')}`);
}

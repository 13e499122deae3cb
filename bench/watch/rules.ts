import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../../native/locate.js';

const seconds = { s: 1, m: 60, h: 3_600 };
/** A rate needs two samples. */
const rangeSecondsMin = 3;

export const rulesText = () => readFileSync(join(packageRoot(), 'deploy', 'prometheus', 'rules.yml'), 'utf8');

/** The rules with every minute made so many seconds, so that what takes minutes passes soon. */
export function inSeconds(rules: string, secondsPerMinute = 1): string {
  const shorter = (count: string, unit: string, least: number) =>
    `${Math.max(least, (Number(count) * seconds[unit as keyof typeof seconds] * secondsPerMinute) / 60)}s`;
  return rules
    .replaceAll(/\[(\d+)([smh])\]/g, (_, count, unit) => `[${shorter(count, unit, rangeSecondsMin)}]`)
    .replaceAll(/for: (\d+)([smh])/g, (_, count, unit) => `for: ${shorter(count, unit, 1)}`);
}

/** Names of what the rules record, and of the alerts. */
export function namesIn(rules: string): { records: string[]; alerts: string[] } {
  const names = (key: string) =>
    [...rules.matchAll(new RegExp(`^\\s*- ${key}: (\\S+)$`, 'gm'))].map(([, name]) => name!);
  return { records: names('record'), alerts: names('alert') };
}

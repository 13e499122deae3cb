import { once } from 'node:events';
import { get as getPlain, type IncomingMessage } from 'node:http';
import { get as getSecure } from 'node:https';
import { text } from 'node:stream/consumers';
import { Tls } from '../common/tls.js';
import type { PresentedCredential } from './connection.js';

/** Metrics of a node, summed over labels: by name, and by name and each label, as in `name{stream="compute"}`. */
export type NodeMetrics = ReadonlyMap<string, number>;

const timeoutMs = 2_000;

/** Reads GET /metrics of a node. Rejects if it does not answer in time. */
export async function readMetrics(
  metricsUrl: string,
  { token, tls: files }: PresentedCredential = { token: null, tls: null },
): Promise<NodeMetrics> {
  const url = new URL(`${metricsUrl}/metrics`);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const options = { headers, signal: AbortSignal.timeout(timeoutMs) };
  const tls = files ? new Tls(files) : null;
  try {
    const request =
      tls === null
        ? getPlain(url, options)
        : getSecure(url, { ...options, ...tls.clientOptions(url.hostname) });
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    if (response.statusCode !== 200) throw new Error(`${url} answers ${response.statusCode}`);
    return parseMetrics(await text(response));
  } finally {
    tls?.close();
  }
}

/** The Prometheus text format: `name{labels} value` a line, comments begin with #. */
export function parseMetrics(text: string): NodeMetrics {
  const sums = new Map<string, number>();
  for (const line of text.split('\n')) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const [, name, labels = '', value] = match;
    const add = (key: string) => sums.set(key, (sums.get(key) ?? 0) + Number(value));
    add(name!);
    for (const [label] of labels.matchAll(/\w+="(?:[^"\\]|\\.)*"/g)) add(`${name}{${label}}`);
  }
  return sums;
}

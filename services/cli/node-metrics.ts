/** Metrics of a node, summed over labels: by name, and by name and each label, as in `name{stream="compute"}`. */
export type NodeMetrics = ReadonlyMap<string, number>;

const timeoutMs = 2_000;

/** Reads GET /metrics of a node. Rejects if it does not answer in time. */
export async function readMetrics(metricsUrl: string, token: string | null): Promise<NodeMetrics> {
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  const response = await fetch(`${metricsUrl}/metrics`, { headers, signal: AbortSignal.timeout(timeoutMs) });
  if (!response.ok) throw new Error(`${metricsUrl}/metrics answers ${response.status}`);
  return parseMetrics(await response.text());
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

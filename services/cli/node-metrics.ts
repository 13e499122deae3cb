/** Metrics of a node by name, summed over labels. */
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
    const match = /^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)/.exec(line);
    if (match) sums.set(match[1]!, (sums.get(match[1]!) ?? 0) + Number(match[2]));
  }
  return sums;
}

import { expect, test } from '@jest/globals';
import { startCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

/** Layers and experts of the largest models that are served, with rows so small that the suite can hold them. */
const wide = { hidden: 32, ffn: 16, layers: 58, experts: 256, topK: 8 };
const seriesMax = 1_500;

test('each role has fewer than 1,500 series, however many experts a model has; those of single experts are apart', async () => {
  const cluster = await startCluster({
    workers: 2,
    routers: 1,
    coordinator: { preset: 'tiny', ...wide, feedback: true },
  });
  await (await cluster.client.forward(testRows(64, wide.hidden), { sequences: 2 })).collect();
  const names = (text: string) => [...text.matchAll(/^\w+(?=[{ ])/gm)];
  for (const { name, listening } of cluster.processes) {
    const { metricsUrl } = await listening;
    const count = async (path: string) => names(await (await fetch(`${metricsUrl}${path}`)).text()).length;
    expect({ name, few: (await count('/metrics')) < seriesMax }).toEqual({ name, few: true });
    // Of a worker its half of the experts.
    expect(await count('/metrics/experts')).toBeGreaterThanOrEqual((wide.layers * wide.experts) / 2);
  }
});

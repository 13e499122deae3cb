import { expect, test } from '@jest/globals';
import { switchyard } from '../support/cli.js';
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

test('the answers of many layers are verified by what rounding between as many may cost', async () => {
  const sizes = { hidden: 64, ffn: 32, experts: 64, 'top-k': 4, 'model-layers': wide.layers };
  const model = Object.entries(sizes).flatMap(([key, value]) => [`--${key}`, String(value)]);
  const batch = ['--sequences', '2', '--length', '64', '--verify'];
  const { status, stdout } = await switchyard(['run', '--workers', '2', ...model, ...batch]);
  expect(stdout).toMatch(/^verified +yes: relative error 2\.\d+e-2 \(allowed 0\.03\)/m);
  expect(status).toBe(0);
});

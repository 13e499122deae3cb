import { spawnSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { panelQueries } from '../../bench/watch/panels.js';
import { Prometheus } from '../../bench/watch/prometheus.js';
import { inSeconds, namesIn, rulesText } from '../../bench/watch/rules.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { Load } from '../support/load.js';
import { until } from '../support/until.js';

const present = spawnSync('prometheus', ['--version']).error === undefined;
if (!present)
  process.stderr.write('\n*** NOT CHECKED: there is no prometheus in PATH to scrape a cluster. ***\n\n');

/** How long an answer with figures may take: the processes are under load, and so may the machine be. */
const intervalMs = 3_000;
/** A rate needs two of them. */
const secondsPerMinute = 6;

/** A cluster under load, scraped every few seconds by rules in which minutes are shorter. */
(present ? describe : describe.skip)('a real Prometheus that scrapes a real cluster', () => {
  let cluster: TestCluster;
  let load: Load;
  let prometheus: Prometheus;

  beforeAll(async () => {
    // Without other copies nobody's rows are late, however slow the machine is: what is late elsewhere is dropped, and calls.
    const coordinator = { copies: 1, replicaSlots: 0, rebalanceSeconds: 1 };
    cluster = await startCluster({ workers: 2, routers: 1, coordinator });
    prometheus = await Prometheus.start({ rules: inSeconds(rulesText(), secondsPerMinute), intervalMs });
    const listening = await Promise.all(cluster.processes.map((process) => process.listening));
    prometheus.scrape(listening.map(({ metricsUrl }) => metricsUrl));
    load = await Load.start(cluster.client);
  });

  afterAll(async () => {
    await load?.stop();
    await prometheus?.stop();
  });

  test.each(namesIn(rulesText()).records)('records %s', async (name) => {
    await until(
      () => prometheus.query(name),
      (samples) => samples.length > 0,
    );
  });

  test.each(panelQueries({ range: `${5 * secondsPerMinute}s`, cuda: false }))(
    'has data for $dashboard, $panel: $expression',
    async ({ expression }) => {
      await until(
        () => prometheus.query(expression),
        (samples) => samples.length > 0 && samples.every(({ value }) => !Number.isNaN(value)),
      );
    },
  );

  test('nothing calls while all is well', async () => {
    const firing = (await prometheus.alerts()).filter(({ state }) => state === 'firing');
    expect(firing.map(({ labels }) => labels)).toEqual([]);
  });
});

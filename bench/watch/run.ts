import { spawnSync } from 'node:child_process';
import { commandLine } from '../../native/locate.js';
import { sleep } from '../../services/common/lifecycle.js';
import { ChaosCluster, type ChaosClusterOptions } from '../chaos/cluster.js';
import { CertificateTrial } from './certificate.js';
import { panelQueries } from './panels.js';
import { Prometheus } from './prometheus.js';
import { inSeconds, namesIn, rulesText } from './rules.js';
import { Traffic } from './traffic.js';
import { faultTrials, type Trial, tightMemory, type Watched } from './trials.js';

/** What an alert did when it was made to fire. */
export interface Tried {
  alert: string;
  fault: string;
  /** From the fault, and from its mending; null: it did not. */
  firedAfterMs: number | null;
  clearedAfterMs: number | null;
}

export interface WatchReport {
  tried: Tried[];
  /** Alerts that no trial made fire. */
  untried: string[];
  /** What fired before anything had happened. */
  falseAlarms: string[];
  /** Recorded series, and queries of panels, that never had data. */
  withoutData: string[];
  queries: number;
}

const scrapeMs = 500;
const calmMs = 15_000;
const waitMsMax = 180_000;
const pollMs = 200;
const healMsMax = 60_000;

const common = {
  workers: 3,
  routers: 1,
  preset: 'tiny',
  transport: 'auto',
  leaseMs: 2_000,
  cables: false,
} as const satisfies Partial<ChaosClusterOptions>;

export interface WatchOptions {
  /** The alerts that are tried; empty: all. */
  alerts: readonly string[];
  log: (line: string) => void;
}

/**
 * Makes alerts fire by faults on real processes, mends these, and sees the alerts end; a real Prometheus scrapes the processes by the rules, with
 * minutes as seconds. If all are tried, it looks whether every recorded series and every panel's query had data.
 */
export async function watchTrials({ alerts: chosen, log }: WatchOptions): Promise<WatchReport> {
  const { records, alerts } = namesIn(rulesText());
  const wanted = chosen.length === 0 ? alerts : chosen;
  const report: WatchReport = { tried: [], untried: [], falseAlarms: [], withoutData: [], queries: 0 };
  const attempt = async (trial: Trial, { prometheus }: Pick<Watched, 'prometheus'>) => {
    if (trial.alerts.some((alert) => wanted.includes(alert)))
      report.tried.push(...(await run(trial, prometheus, log)));
  };
  await withCluster({ ...common, copies: 2, worker: { memory: tightMemory } }, 0, async (watched) => {
    const { cluster, traffic, prometheus } = watched;
    const started = performance.now();
    traffic.start(1);
    await sleep(calmMs);
    await traffic.stop();
    report.falseAlarms = (await firing(prometheus)).sort();
    for (const trial of faultTrials(watched)) {
      await attempt(trial, watched);
      await cluster.untilWhole(healMsMax);
    }
    if (chosen.length > 0) return;
    const queries = [
      ...records.map((name) => ({ dashboard: 'rules', panel: name, expression: name })),
      ...panelQueries({ range: '5s', cuda: false }),
    ];
    report.queries = queries.length;
    const seconds = (performance.now() - started) / 1000;
    for (const { dashboard, panel, expression } of queries)
      if (!(await prometheus.hadData(expression, seconds)))
        report.withoutData.push(`${dashboard}, ${panel}: ${expression}`);
  });
  await withCluster({ ...common, copies: 1, coordinator: { rebalanceSeconds: 0 } }, 4, async (watched) => {
    const { cluster, traffic } = watched;
    const imbalance: Trial = {
      alerts: ['SwitchyardImbalance'],
      fault: 'a load that some experts have most of, and rebalanceSeconds 0',
      inject: async () => traffic.start(4),
      mend: async () => rebalance(cluster.address),
    };
    await attempt(imbalance, watched);
    await traffic.stop();
  });
  await withPrometheus(async (prometheus) => {
    const certificate = new CertificateTrial(prometheus);
    try {
      await attempt(await certificate.trial(), { prometheus });
    } finally {
      await certificate.stop();
    }
  });
  report.untried = wanted.filter((alert) => !report.tried.some((one) => one.alert === alert));
  return report;
}

async function withPrometheus(work: (prometheus: Prometheus) => Promise<void>): Promise<void> {
  const prometheus = await Prometheus.start({ rules: inSeconds(rulesText()), intervalMs: scrapeMs });
  try {
    await work(prometheus);
  } finally {
    await prometheus.stop();
  }
}

async function withCluster(
  options: Omit<ChaosClusterOptions, 'onLine'>,
  skew: number,
  work: (watched: Watched) => Promise<void>,
): Promise<void> {
  const cluster = await ChaosCluster.start({ ...options, onLine: () => {} });
  const client = await cluster.connect();
  try {
    await withPrometheus(async (prometheus) => {
      const retarget = async () => {
        const running = [...cluster.processes.values()].filter((process) => process.running);
        const listening = await Promise.all(running.map((process) => process.listening));
        prometheus.scrape(listening.map(({ metricsUrl }) => metricsUrl));
      };
      await retarget();
      await work({ cluster, traffic: await Traffic.prepare(client, skew), prometheus, retarget });
    });
  } finally {
    client.destroy();
    await cluster.stop();
  }
}

async function run(trial: Trial, prometheus: Prometheus, log: (line: string) => void): Promise<Tried[]> {
  const { alerts, fault } = trial;
  log(fault);
  const injected = performance.now();
  await trial.inject();
  const fired = await Promise.all(
    alerts.map((alert) => waited(injected, async () => (await firing(prometheus)).includes(alert))),
  );
  const mended = performance.now();
  await trial.mend();
  const cleared = await Promise.all(
    alerts.map((alert) => waited(mended, async () => !(await firing(prometheus)).includes(alert))),
  );
  return alerts.map((alert, at) => {
    const one = { alert, fault, firedAfterMs: fired[at]!, clearedAfterMs: cleared[at]! };
    log(`  ${alert} fired after ${one.firedAfterMs} ms, cleared ${one.clearedAfterMs} ms after its mending`);
    return one;
  });
}

async function firing(prometheus: Prometheus): Promise<string[]> {
  const alerts = await prometheus.alerts();
  return alerts.filter(({ state }) => state === 'firing').map(({ labels }) => labels.alertname!);
}

/** Milliseconds since `started` when the condition came to hold; null if it did not in time. */
async function waited(started: number, condition: () => Promise<boolean>): Promise<number | null> {
  for (;;) {
    if (await condition()) return Math.round(performance.now() - started);
    if (performance.now() - started > waitMsMax) return null;
    await sleep(pollMs);
  }
}

/** As an operator does. */
function rebalance(address: string): void {
  const program = commandLine();
  const { status, stderr } = spawnSync(process.execPath, [program, 'rebalance', '--address', address], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`rebalance: ${stderr}`);
}

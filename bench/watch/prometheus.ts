import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { stringify } from 'yaml';

/** One series of an answer: its labels, and its value now. */
export interface Sample {
  metric: Readonly<Record<string, string>>;
  value: number;
}

export interface Alert {
  labels: Readonly<Record<string, string>>;
  state: 'pending' | 'firing';
}

export interface PrometheusOptions {
  /** Rules, as the text of a file. */
  rules: string;
  /** How often it scrapes and evaluates. */
  intervalMs: number;
}

/** The job of everything that it scrapes. */
export const job = 'switchyard';

/** A real Prometheus on a free port of this machine, which keeps its data in a temporary directory. */
export class Prometheus {
  private constructor(
    private readonly child: ChildProcess,
    private readonly folder: string,
    private readonly url: string,
  ) {}

  /** Rejects if there is no `prometheus` in PATH, and with what it says if it does not start. */
  static async start({ rules, intervalMs }: PrometheusOptions): Promise<Prometheus> {
    const folder = mkdtempSync(join(tmpdir(), 'switchyard-prometheus-'));
    const every = `${intervalMs}ms`;
    writeFileSync(join(folder, 'rules.yml'), rules);
    writeFileSync(join(folder, 'targets.json'), '[]');
    writeFileSync(
      join(folder, 'prometheus.yml'),
      stringify({
        global: { scrape_interval: every, scrape_timeout: every, evaluation_interval: every },
        rule_files: ['rules.yml'],
        scrape_configs: [
          {
            job_name: job,
            file_sd_configs: [{ files: ['targets.json'] }],
            tls_config: { insecure_skip_verify: true },
          },
        ],
      }),
    );
    const flags = [
      `--config.file=${join(folder, 'prometheus.yml')}`,
      `--storage.tsdb.path=${join(folder, 'data')}`,
      '--web.listen-address=127.0.0.1:0',
    ];
    const child = spawn('prometheus', flags, { stdio: ['ignore', 'ignore', 'pipe'] });
    try {
      return new Prometheus(child, folder, `http://${await listening(child)}`);
    } catch (error) {
      rmSync(folder, { recursive: true, force: true });
      throw error;
    }
  }

  /** Scrapes these from now on. `urls`: http(s)://host:port of processes, whose certificates are believed. */
  scrape(urls: readonly string[]): void {
    const groups = urls.map((url) => {
      const { host, protocol } = new URL(url);
      return { targets: [host], labels: { __scheme__: protocol.replace(':', '') } };
    });
    writeFileSync(join(this.folder, 'targets.json'), JSON.stringify(groups));
  }

  async query(expression: string): Promise<Sample[]> {
    const { result } = await this.get(`query?query=${encodeURIComponent(expression)}`);
    const samples = result as { metric: Record<string, string>; value: [number, string] }[];
    return samples.map(({ metric, value: [, value] }) => ({ metric, value: Number(value) }));
  }

  /** Whether an expression had data at any time in the last `seconds`. */
  async hadData(expression: string, seconds: number): Promise<boolean> {
    const end = Date.now() / 1000;
    const range = `start=${end - seconds}&end=${end}&step=1`;
    const { result } = await this.get(`query_range?query=${encodeURIComponent(expression)}&${range}`);
    return (result as unknown[]).length > 0;
  }

  async alerts(): Promise<Alert[]> {
    const { alerts } = await this.get('alerts');
    return alerts as Alert[];
  }

  async stop(): Promise<void> {
    const ended = once(this.child, 'exit');
    this.child.kill('SIGTERM');
    await ended;
    rmSync(this.folder, { recursive: true, force: true });
  }

  private async get(path: string): Promise<Record<string, unknown>> {
    const response = await fetch(`${this.url}/api/v1/${path}`);
    const body = (await response.json()) as { data?: Record<string, unknown>; error?: string };
    if (body.data === undefined) throw new Error(`${path}: ${body.error}`);
    return body.data;
  }
}

/** host:port, once it listens. */
function listening(child: ChildProcess): Promise<string> {
  const said: string[] = [];
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', () => reject(new Error(`prometheus has ended: ${said.join('\n')}`)));
    createInterface({ input: child.stderr! }).on('line', (line) => {
      said.push(line);
      const address = /msg="Listening on".* address=(\S+)/.exec(line)?.[1];
      if (address !== undefined) resolve(address);
    });
  });
}

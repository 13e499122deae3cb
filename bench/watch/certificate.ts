import { execFileSync } from 'node:child_process';
import { mkdtempSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LocalProcess } from '../../services/cli/local-process.js';
import type { Prometheus } from './prometheus.js';
import type { Trial } from './trials.js';

const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
const monthDays = 30;
const lastDays = 2;
const stopMsMax = 10_000;

/** A coordinator with TLS whose certificate is about to end, and is replaced while it runs. `openssl` makes both. */
export class CertificateTrial {
  private readonly folder = mkdtempSync(join(tmpdir(), 'switchyard-certificate-'));
  private readonly process: LocalProcess;

  constructor(private readonly prometheus: Prometheus) {
    this.issue(monthDays);
    const [tlsCert, tlsKey] = [this.path('pem'), this.path('key')];
    const flags = { preset: 'tiny', port: 0, metricsPort: 0, router: false, tlsCa: tlsCert, tlsCert, tlsKey };
    this.process = new LocalProcess('coordinator', 'coordinator', flags, {}, () => {});
  }

  async trial(): Promise<Trial> {
    this.prometheus.scrape([(await this.process.listening).metricsUrl]);
    return {
      alerts: ['SwitchyardCertificateEnds'],
      fault: `a certificate that ends in ${lastDays} days`,
      inject: async () => this.issue(lastDays),
      mend: async () => this.issue(monthDays),
    };
  }

  async stop(): Promise<void> {
    await this.process.stop(stopMsMax);
    rmSync(this.folder, { recursive: true, force: true });
  }

  private path(kind: string): string {
    return join(this.folder, `own.${kind}`);
  }

  /** Puts a certificate that is its own authority, and its key, in the place of those that are there. */
  private issue(days: number): void {
    const made = ['-keyout', this.path('new.key'), '-out', this.path('new.pem')];
    const names = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1,DNS:localhost'];
    const length = ['-days', String(days)];
    execFileSync('openssl', ['req', '-x509', ...newKey, ...made, ...names, ...length], { stdio: 'pipe' });
    for (const kind of ['key', 'pem']) renameSync(this.path(`new.${kind}`), this.path(kind));
  }
}

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fixedPort } from '../../bench/fixed-port.js';
import type { KeyPair } from './certificates.js';
import { until } from './until.js';

/** A member of etcd, alone, whose data is gone at the end. */
export class Etcd {
  private constructor(
    /** host:port */
    readonly address: string,
    private readonly folder: string,
    readonly process: ChildProcess,
  ) {}

  /** `tls`: clients must show a certificate of `ca`. */
  static async start(tls: (KeyPair & { ca: string }) | null = null): Promise<Etcd> {
    const folder = mkdtempSync(join(tmpdir(), 'switchyard-etcd-'));
    const [client, peer] = [await fixedPort(), await fixedPort()];
    const scheme = tls === null ? 'http' : 'https';
    const [clientUrl, peerUrl] = [`${scheme}://127.0.0.1:${client}`, `http://127.0.0.1:${peer}`];
    const urls = { 'listen-client-urls': clientUrl, 'advertise-client-urls': clientUrl };
    const peers = { 'listen-peer-urls': peerUrl, 'initial-advertise-peer-urls': peerUrl };
    const flags = { 'data-dir': folder, ...urls, ...peers, 'initial-cluster': `default=${peerUrl}` };
    const files = tls && { 'cert-file': tls.cert, 'key-file': tls.key, 'trusted-ca-file': tls.ca };
    const args = Object.entries({ ...flags, ...files }).flatMap(([name, value]) => [`--${name}`, value]);
    const etcd = new Etcd(`127.0.0.1:${client}`, folder, spawn('etcd', args, { stdio: 'ignore' }));
    await until(() => answers(client));
    return etcd;
  }

  async stop(): Promise<void> {
    this.process.kill('SIGCONT');
    const gone = this.process.exitCode === null ? once(this.process, 'exit') : null;
    this.process.kill('SIGKILL');
    await gone;
    rmSync(this.folder, { recursive: true });
  }
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

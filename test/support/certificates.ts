import { execFileSync } from 'node:child_process';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from '@jest/globals';

/** PEM files of a certificate and its key. */
export interface KeyPair {
  cert: string;
  key: string;
}

const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: 'pipe' });

/** A certificate authority in a directory of its own, which goes with the test file. `openssl` makes what it signs. */
export class Authority {
  readonly directory = mkdtempSync(join(tmpdir(), 'switchyard-ca-'));
  readonly ca = join(this.directory, 'ca.pem');
  private readonly caKey = join(this.directory, 'ca.key');

  constructor() {
    afterAll(() => rmSync(this.directory, { recursive: true, force: true }));
    const files = ['-out', this.ca, '-keyout', this.caKey];
    openssl('req', '-x509', ...newKey, ...files, '-subj', '/CN=ca', '-days', '2');
  }

  /**
   * A certificate with these alternative names, such as DNS:localhost or URI:switchyard://client, in files called `file`. One
   * that is there is replaced, file by file. `days`: negative, it has expired.
   */
  issue(file: string, names: readonly string[], days = 1): KeyPair {
    const path = (kind: string) => join(this.directory, `${file}.${kind}`);
    openssl(
      'req',
      '-new',
      ...newKey,
      '-subj',
      `/CN=${file}`,
      '-keyout',
      path('new.key'),
      '-out',
      path('csr'),
    );
    const extensions = `subjectAltName=${names.join(',')}\nbasicConstraints=critical,CA:FALSE\n`;
    writeFileSync(path('ext'), extensions);
    const signer = ['-CA', this.ca, '-CAkey', this.caKey, '-days', String(days)];
    openssl('x509', '-req', '-in', path('csr'), ...signer, '-extfile', path('ext'), '-out', path('new.pem'));
    renameSync(path('new.pem'), path('pem'));
    renameSync(path('new.key'), path('key'));
    return { cert: path('pem'), key: path('key') };
  }
}

/** Names of a server that is reached over loopback. */
export const loopback = ['IP:127.0.0.1', 'DNS:localhost'];
export const clientName = 'URI:switchyard://client';
export const operatorName = 'URI:switchyard://operator';
export const nodeNameOf = (node: string) => `URI:switchyard://node/${node}`;

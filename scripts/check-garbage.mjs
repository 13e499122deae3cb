/**
 * Garbage to every HTTP and gRPC port of a cluster of processes, half of it with a credential, without TLS and with it: no process
 * may end, stand still, or hold more once its heap is collected, and batches keep their answers:
 *   node scripts/check-garbage.mjs [REQUESTS [plain | tls]] (after npm run bootstrap; to each port: 100,000)
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { faultsOf, formatHoldings, runGarbage } from '../dist/bench/garbage.js';

const requests = Number(process.argv[2] ?? 100_000);
const chosen = process.argv[3];
const scratch = mkdtempSync(join(tmpdir(), 'switchyard-garbage-'));
const log = (line) => process.stderr.write(`${line}\n`);

/** A certificate that signs itself, of every node. */
function certificate() {
  const [cert, key] = ['cert.pem', 'key.pem'].map((name) => join(scratch, name));
  const subjectAltName = 'subjectAltName=IP:127.0.0.1,URI:switchyard://node/*,URI:switchyard://operator';
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key];
  const options = ['-x509', ...newKey, '-out', cert, '-subj', '/CN=all', '-days', '2'];
  execFileSync('openssl', ['req', ...options, '-addext', subjectAltName], { stdio: 'pipe' });
  return { ca: cert, cert, key, clientCa: cert };
}

let faults = 0;
try {
  for (const mode of chosen ? [chosen] : ['plain', 'tls']) {
    const tls = mode === 'tls' ? certificate() : null;
    const report = await runGarbage({ requests, tls, log });
    console.log(
      `${tls === null ? 'without' : 'with'} TLS: ${requests} requests to each port in ${report.seconds.toFixed(0)} s`,
    );
    for (const [answer, count] of [...report.answers].sort()) console.log(`  ${answer}: ${count}`);
    console.log(formatHoldings(report));
    for (const fault of faultsOf(report)) console.log(`  FAULT ${fault}`);
    faults += faultsOf(report).length;
  }
} finally {
  rmSync(scratch, { recursive: true });
}
process.exit(faults === 0 ? 0 : 1);

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, test } from '@jest/globals';
import { native } from '../../native/index.js';

const run = promisify(execFile);

/** A process that starts a server on 127.0.0.1, then UCX, and prints the addresses of its listening sockets. */
const script = `
  import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
  import { native } from './dist/native/index.js';
  import { startGrpcServer } from './dist/services/common/grpc-server.js';
  import { createLogger } from './dist/services/common/log.js';
  const server = await startGrpcServer({ host: '127.0.0.1', port: 0, token: null, insecure: false,
    messageBytesMax: 1 << 20, services: [], log: createLogger('test', 'test', 'silent') });
  native.ucx.address();
  const readLink = (path) => { try { return readlinkSync(path); } catch { return ''; } };
  const links = readdirSync('/proc/self/fd').map((fd) => readLink('/proc/self/fd/' + fd));
  const inodes = new Set(links.map((link) => /^socket:\\[(\\d+)\\]$/.exec(link)?.[1]));
  const rows = ['tcp', 'tcp6'].flatMap((table) => readFileSync('/proc/self/net/' + table, 'utf8').split('\\n').slice(1));
  const listening = rows.map((row) => row.trim().split(/\\s+/)).filter((row) => row[3] === '0A' && inodes.has(row[9]));
  console.log(JSON.stringify(listening.map((row) => row[1].split(':')[0])));
  await server.close(0);
  process.exit(0);
`;

(native.ucx === null ? test.skip : test)(
  'beside a server on loopback UCX opens ports on loopback alone',
  async () => {
    const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', script]);
    const addresses = JSON.parse(stdout) as string[];
    // The server's own, and at least one of UCX.
    expect(addresses.length).toBeGreaterThan(1);
    expect(new Set(addresses)).toEqual(new Set(['0100007F']));
  },
  60_000,
);

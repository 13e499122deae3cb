/** check-image.mjs IMAGE: runs the commands of an image as a container engine would. Part of check-image.sh. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';
import { check, until } from './checks.mjs';
import { Container, Image } from './containers.mjs';

const image = new Image(process.argv[2]);
// As Kubernetes says it beside a Service of that name.
const environment = { SWITCHYARD_PORT: 'tcp://10.0.0.1:7070' };
const compose = parse(readFileSync('docker-compose.yml', 'utf8'), { merge: true });
const [, ...healthCheck] = compose.services.coordinator.healthcheck.test;
/** What Docker waits by default before it kills. */
const graceSeconds = 10;

async function run(args, options = {}) {
  return Container.start(image, args, { environment, ...options }).end();
}

async function doctor() {
  const { status, text } = await run(['doctor']);
  check('doctor finds all it needs', status === 0, text);
  check('Node 24', /^OK +Node +24\./m.test(text), text);
  check('the native addon, for this CPU', /^OK +CPU .*avx2/m.test(text), text);
  check('UCX', /^OK +UCX +1\.\d+/m.test(text), text);
}

async function batch() {
  const { status, text } = await run(['run', '--preset', 'tiny', '--workers', '2', '--verify']);
  check('run --preset tiny --workers 2', status === 0 && /^verified +yes/m.test(text), text);
}

async function firstProcess() {
  const up = Container.start(image, ['up', '--preset', 'tiny', '--workers', '2', '--metrics-port', '7071'], {
    environment,
  });
  await until('healthy', async () => {
    if (up.ended) throw new Error(up.lines.join('\n'));
    return up.pid !== null && (await up.exec(healthCheck)).status === 0;
  });
  check('the health check of docker-compose.yml succeeds inside', true);
  const written = await up.exec(['sh', '-c', 'touch /opt/switchyard/x']);
  check('the root is read-only', /Read-only file system/.test(written.text), written.text);
  const { text: orphan } = await up.exec(['sh', '-c', '(sleep 0.1 & echo $!)']);
  await until(
    'the orphan is reaped',
    async () => (await up.exec(['test', '-e', `/proc/${orphan}`])).status === 1,
  );
  check('PID 1 reaps orphans', true);
  const { status, seconds, text } = await up.end('SIGTERM');
  check(
    `SIGTERM ends it in order, here in ${seconds.toFixed(1)} s`,
    status === 0 && seconds < graceSeconds,
    text,
  );
}

/** A control group with these limits, each [file of version 1, file of version 2, value of each]. */
function controlGroup(controller, [v1, v2, value1, value2]) {
  const one = existsSync(join('/sys/fs/cgroup', controller));
  const directory = join('/sys/fs/cgroup', one ? controller : '', `switchyard-check-${process.pid}`);
  if (!existsSync(directory)) mkdirSync(directory);
  writeFileSync(join(directory, one ? v1 : v2), one ? value1 : value2);
  return directory;
}

function oomKills(directory) {
  const file = ['memory.events', 'memory.oom_control'].find((name) => existsSync(join(directory, name)));
  return Number(/^oom_kill (\d+)$/m.exec(readFileSync(join(directory, file), 'utf8'))?.[1]);
}

async function limits() {
  const bytes = String(1024 ** 3);
  const memory = controlGroup('memory', ['memory.limit_in_bytes', 'memory.max', bytes, bytes]);
  const cpu = controlGroup('cpu', ['cpu.cfs_quota_us', 'cpu.max', '150000', '150000 100000']);
  const groups = [...new Set([memory, cpu])];
  try {
    const { text } = await run(['doctor'], { groups });
    check('the limit of memory is seen', /^OK +memory .*limited to 1\.00 GiB by \/sys/m.test(text), text);
    check('the limit of CPU is seen', /^OK +cores .*limited to 1\.50 by \/sys/m.test(text), text);
    const small = await run(['run', '--preset', 'tiny', '--workers', '2'], { groups });
    check('a batch within 1 GiB', small.status === 0, small.text);
    const large = await run(['run', '--preset', 'reference', '--workers', '1'], { groups });
    const reason = /^switchyard: RESOURCE_EXHAUSTED: .*/m.exec(large.text)?.[0];
    check(`weights beyond it are refused: ${reason}`, large.status === 1 && reason !== undefined, large.text);
    check('the kernel ended nothing', oomKills(memory) === 0);
  } finally {
    for (const group of groups) rmdirSync(group);
  }
}

try {
  for (const part of [doctor, batch, firstProcess, limits]) await part();
} finally {
  image.remove();
}

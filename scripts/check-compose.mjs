/**
 * check-compose.mjs IMAGE: docker-compose (apt-get install docker-compose) checks docker-compose.yml; then its services run from
 * the image, each in a container with an address of its own, and the commands of the working tree use them as a client on the
 * host does. Needs socat and iproute2 beside what containers.mjs needs. Part of check-image.sh.
 */
import { execFileSync, spawn } from 'node:child_process';
import { parse } from 'yaml';
import { check, until } from './checks.mjs';
import { Container, Image } from './containers.mjs';

const tokens = Object.fromEntries(
  ['CLIENT', 'NODE', 'OPERATOR'].map((role) => [`SWITCHYARD_${role}_TOKEN`, `${role}-${process.pid}-token`]),
);
const prefix = `sy${process.pid}`;
const program = 'dist/bin/switchyard.js';
const ip = (...args) => execFileSync('ip', args);

/** The services as docker-compose resolves them. */
function services() {
  const text = execFileSync('docker-compose', ['config'], {
    env: { ...process.env, ...tokens, PRESET: 'tiny' },
    encoding: 'utf8',
  });
  check('docker-compose config', true);
  const all = ['', '.tls', '.watch', '.watch.tls'].flatMap((part) => ['-f', `docker-compose${part}.yml`]);
  const together = execFileSync('docker-compose', [...all, 'config'], {
    env: { ...process.env, ...tokens, GRAFANA_PASSWORD: 'a password' },
    encoding: 'utf8',
  });
  check(
    'docker-compose config of all files together',
    /PROMETHEUS_CONFIG: prometheus-tls/.test(together),
    together,
  );
  return Object.entries(parse(text).services);
}

/** A bridge as Docker makes one, with the host as its first member: ports are published in a network namespace that stands for it. */
class Network {
  addresses = {};
  publishers = [];

  constructor(names) {
    ip('netns', 'add', `${prefix}-host`);
    this.inHost('ip', 'link', 'set', 'lo', 'up');
    this.inHost('ip', 'link', 'add', 'bridge', 'type', 'bridge');
    this.inHost('ip', 'address', 'add', '10.77.0.1/24', 'dev', 'bridge');
    this.inHost('ip', 'link', 'set', 'bridge', 'up');
    for (const [index, name] of names.entries()) this.join(name, index);
  }

  join(name, index) {
    const address = `10.77.0.${index + 2}`;
    const own = `${prefix}-${name}`;
    this.addresses[name] = address;
    ip('netns', 'add', own);
    ip(
      'link',
      'add',
      `v${index}`,
      'netns',
      `${prefix}-host`,
      'type',
      'veth',
      'peer',
      'name',
      'eth0',
      'netns',
      own,
    );
    this.inHost('ip', 'link', 'set', `v${index}`, 'master', 'bridge', 'up');
    ip('-netns', own, 'address', 'add', `${address}/24`, 'dev', 'eth0');
    ip('-netns', own, 'link', 'set', 'eth0', 'up');
  }

  inHost(...command) {
    execFileSync('ip', ['netns', 'exec', `${prefix}-host`, ...command]);
  }

  /** HOST:PORT:PORT of the compose file, by a proxy in user space as Docker has one. */
  publish(name, port) {
    const { published, target, host_ip: host } = parts(port);
    const listen = `TCP-LISTEN:${published},bind=${host},fork,reuseaddr`;
    const socat = ['socat', listen, `TCP:${this.addresses[name]}:${target}`];
    this.publishers.push(spawn('ip', ['netns', 'exec', `${prefix}-host`, ...socat], { stdio: 'ignore' }));
  }

  remove() {
    for (const publisher of this.publishers) publisher.kill();
    for (const name of ['host', ...Object.keys(this.addresses)]) ip('netns', 'delete', `${prefix}-${name}`);
  }
}

function parts(port) {
  if (typeof port === 'object') return port;
  const [host_ip, published, target] = port.replace('/tcp', '').split(':');
  return { host_ip, published, target };
}

/** A command of the working tree on the host, with the client's token. */
function client(...args) {
  return new Promise((resolve) => {
    const environment = { ...process.env, SWITCHYARD_TOKEN: tokens.SWITCHYARD_CLIENT_TOKEN };
    const command = ['netns', 'exec', `${prefix}-host`, process.execPath, program, ...args];
    const child = spawn('ip', command, { env: environment, stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    for (const output of [child.stdout, child.stderr]) output.on('data', (data) => (text += data));
    child.once('close', (status) => resolve({ status, text }));
  });
}

async function useFromHost() {
  const status = await client('status');
  const ready = /^ready; /m.test(status.text) && /router +router +ready +127\.0\.0\.1:7072/.test(status.text);
  check('status from the host', ready, status.text);
  for (const transport of ['auto', 'grpc']) {
    const { text } = await client(
      'forward',
      '--sequences',
      '8',
      '--length',
      '256',
      '--verify',
      '--transport',
      transport,
    );
    const way = /^routers +(.*)/m.exec(text)?.[1];
    check(`forward from the host, ${transport}: ${way}`, /^verified +yes/m.test(text), text);
  }
}

const image = new Image(process.argv[2]);
const started = [];
let network = null;
try {
  const all = services();
  network = new Network(all.map(([name]) => name));
  for (const [name, service] of all) {
    const args = Array.isArray(service.command) ? service.command : service.command.split(' ');
    const place = { name: service.hostname, network: `${prefix}-${name}`, addresses: network.addresses };
    const environment = { ...service.environment, SWITCHYARD_PORT: 'tcp://10.0.0.1:7070' };
    started.push({ service, container: Container.start(image, args, { ...place, environment }) });
    for (const port of service.ports ?? []) network.publish(name, port);
  }
  for (const { service, container } of started) {
    await until(`${container.name} is healthy`, async () => {
      if (container.ended) throw new Error(container.lines.join('\n'));
      return container.pid !== null && (await container.exec(service.healthcheck.test.slice(1))).status === 0;
    });
    check(`${container.name} is healthy`, true);
  }
  await useFromHost();
  // As `docker compose down`: those that depend on others first.
  const order = started.toSorted((a, b) => (b.service.depends_on ? 1 : 0) - (a.service.depends_on ? 1 : 0));
  for (const { service, container } of order) {
    const { status, seconds, text } = await container.end('SIGTERM');
    const grace = Number.parseInt(service.stop_grace_period, 10);
    check(`${container.name} ended in ${seconds.toFixed(1)} s`, status === 0 && seconds < grace, text);
  }
} finally {
  for (const { container } of started) if (!container.ended) await container.end('SIGKILL');
  network?.remove();
  image.remove();
}

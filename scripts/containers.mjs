/**
 * Containers without a container engine, for checks of the image: namespaces and chroot by util-linux, the image by buildah.
 * A container has a read-only root, a /tmp, the image's user without capabilities, and its command as PID 1. Needs root.
 */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { waitMsMax } from './checks.mjs';

/** Sets up what a container engine gives, then becomes PID 1 of the container. Its variables are those of `start`. */
const enter = `
set -e
mount --bind "$ROOT" "$MOUNT"
mount -t proc proc "$MOUNT/proc"
mount -t sysfs sysfs "$MOUNT/sys"
mount -t tmpfs -o mode=755 cgroups "$MOUNT/sys/fs/cgroup"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then mount -t cgroup2 cgroup "$MOUNT/sys/fs/cgroup"
else for controller in memory cpu; do
  mkdir "$MOUNT/sys/fs/cgroup/$controller"
  mount -t cgroup -o "$controller" cgroup "$MOUNT/sys/fs/cgroup/$controller"
done; fi
mount -t tmpfs -o mode=1777 tmp "$MOUNT/tmp"
mount -t tmpfs -o mode=755 dev "$MOUNT/dev"
for device in null zero random urandom; do touch "$MOUNT/dev/$device"; mount --bind "/dev/$device" "$MOUNT/dev/$device"; done
ln -s /proc/self/fd "$MOUNT/dev/fd"
mkdir "$MOUNT/dev/shm"
mount -t tmpfs -o mode=1777,size=64m shm "$MOUNT/dev/shm"
mount --bind "$HOSTS" "$MOUNT/etc/hosts"
mount -o remount,bind,ro "$MOUNT"
hostname "$NAME"
ip link set lo up
exec env --ignore-environment "$@"
`;

/** An image of buildah's storage. */
export class Image {
  constructor(name) {
    const { OCIv1 } = JSON.parse(execFileSync('buildah', ['inspect', '--type', 'image', name]));
    const { Entrypoint: entrypoint, Env: environment = [], User: user } = OCIv1.config;
    Object.assign(this, { entrypoint, environment, user });
    this.container = execFileSync('buildah', ['from', name], { encoding: 'utf8' }).trim();
    this.root = execFileSync('buildah', ['mount', this.container], { encoding: 'utf8' }).trim();
  }

  remove() {
    execFileSync('buildah', ['umount', this.container]);
    execFileSync('buildah', ['rm', this.container]);
  }
}

export class Container {
  /**
   * Runs the image's entry point with these arguments. `groups` are directories of control groups to be in; `network` is a
   * named network namespace, without which there is loopback alone; `addresses` are those of other containers by name.
   */
  static start(image, args, { name = 'check', environment = {}, groups = [], network, addresses = {} } = {}) {
    const container = new Container();
    const directory = mkdtempSync(join(tmpdir(), 'switchyard-container-'));
    const hosts = Object.entries({ localhost: '127.0.0.1', [name]: '127.0.0.1', ...addresses });
    writeFileSync(join(directory, 'hosts'), hosts.map(([host, address]) => `${address} ${host}\n`).join(''));
    const namespaces = ['--mount', '--uts', '--ipc', '--pid', '--cgroup', '--fork', '--kill-child'];
    if (network === undefined) namespaces.push('--net');
    const variables = Object.entries(environment).map(([key, value]) => `${key}=${value}`);
    const path = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
    const [user, group] = image.user.split(':');
    const drop = ['--no-new-privs', '--bounding-set=-all', '--inh-caps=-all', '--clear-groups'];
    const asUser = ['setpriv', ...drop, `--reuid=${user}`, `--regid=${group}`];
    const enterGroups = 'for group in $GROUPS_OF; do echo $$ > "$group/cgroup.procs"; done; exec "$@"';
    const command = [
      ...['sh', '-c', enterGroups, 'sh'],
      ...(network === undefined ? [] : ['ip', 'netns', 'exec', network]),
      ...['unshare', ...namespaces, 'sh', '-c', enter, 'sh'],
      ...[path, ...image.environment, ...variables],
      ...['chroot', join(directory, 'root'), ...asUser, ...image.entrypoint, ...args],
    ];
    mkdirSync(join(directory, 'root'));
    container.run(command, {
      ROOT: image.root,
      MOUNT: join(directory, 'root'),
      HOSTS: join(directory, 'hosts'),
      NAME: name,
      GROUPS_OF: groups.join(' '),
    });
    container.exited.finally(() => rmSync(directory, { recursive: true, force: true }));
    return Object.assign(container, { name, image });
  }

  run([program, ...args], variables) {
    this.lines = [];
    this.child = spawn(program, args, {
      env: { ...process.env, ...variables },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    for (const output of [this.child.stdout, this.child.stderr])
      createInterface({ input: output }).on('line', (line) => this.lines.push(line));
    this.exited = new Promise((resolve) =>
      this.child.once('close', (code, signal) => {
        this.ended = true;
        resolve(code ?? signal);
      }),
    );
  }

  /** PID 1 of the container as this namespace numbers it; null: not yet there. */
  get pid() {
    const path = `/proc/${this.child.pid}/task/${this.child.pid}/children`;
    const [child] = existsSync(path) ? readFileSync(path, 'utf8').trim().split(' ') : [];
    return child ? Number(child) : null;
  }

  signal(name) {
    process.kill(this.pid, name);
  }

  /** Runs a command beside PID 1, as its user. Returns its exit status and output. */
  async exec(command) {
    const [user, group] = this.image.user.split(':');
    const inside = [
      '--target',
      String(this.pid),
      '--mount',
      '--uts',
      '--ipc',
      '--net',
      '--pid',
      '--root',
      '--wd',
    ];
    const other = new Container();
    other.run(['nsenter', ...inside, `--setuid=${user}`, `--setgid=${group}`, ...command], {});
    return { status: await other.exited, text: other.lines.join('\n') };
  }

  /** The exit status, and how long it took from now. A container that does not end is killed, which is an error. */
  async end(signal) {
    const start = performance.now();
    if (signal) this.signal(signal);
    const timer = setTimeout(() => this.child.kill('SIGKILL'), waitMsMax);
    const status = await this.exited;
    clearTimeout(timer);
    return { status, seconds: (performance.now() - start) / 1000, text: this.lines.join('\n') };
  }
}

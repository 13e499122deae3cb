import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import {
  checkPlace,
  orderWorkers,
  parseTopology,
  readTopology,
} from '../../services/coordinator/topology.js';
import { topologyOf } from '../../services/coordinator/topology-source.js';

const file = (body: string) => parseTopology(body, 'cluster.yaml');

const twoHosts = `
hosts:
  - name: alpha
    devices: [cpu, cpu]
  - name: beta
    devices: ["cuda:0", cpu]
links:
  - { from: alpha, to: beta, bandwidth: 25Gbit/s, latencyMicroseconds: 12 }
`;

describe('topology file', () => {
  test('bandwidths are read in bits per second', () => {
    const bandwidthOf = (text: string) =>
      file(
        `hosts: [{ name: a, devices: [cpu] }, { name: b, devices: [cpu] }]\nlinks: [{ from: a, to: b, bandwidth: ${text} }]`,
      ).links[0]!.bandwidth;
    expect(bandwidthOf('25Gbit/s')).toBe(25e9);
    expect(bandwidthOf('500 Mbps')).toBe(500e6);
    expect(bandwidthOf('1.6Tbit/s')).toBe(1.6e12);
    expect(bandwidthOf('1000')).toBe(1000);
    expect(() => bandwidthOf('10GB')).toThrow(/links\.0\.bandwidth is "10GB".*allowed: bits per second/);
    expect(() => bandwidthOf('-5')).toThrow(/links\.0\.bandwidth is -5/);
    expect(() => bandwidthOf('0')).toThrow(/links\.0\.bandwidth is 0/);
    for (const beyond of ['1.0e-300', '1.0e300', '9999Tbit/s'])
      expect(() => bandwidthOf(beyond)).toThrow(
        /links\.0\.bandwidth is .*; allowed: bits per second from 1 to 1e15/,
      );
  });

  test.each([
    ['hosts: []', /hosts is \[\]/],
    ['hosts: 3', /hosts is 3/],
    ['hosts: .inf', /hosts is Infinity/],
    ['hosts: [{ name: a, devices: [] }]', /hosts\.0\.devices is \[\]/],
    ['hosts: [{ name: a, devices: [cpu], gpus: 2 }]', /hosts\.0.*gpus/],
    ['hosts: [{ name: a, devices: [cpu] }, { name: a, devices: [cpu] }]', /hosts\.1\.name is "a"/],
    [
      'hosts: [{ name: a, devices: [cpu] }]\nlinks: [{ from: a, to: c, bandwidth: 1 }]',
      /links\.0\.to is "c"; allowed: a/,
    ],
    [
      'hosts: [{ name: a, devices: [cpu] }]\nlinks: [{ from: a, to: a, bandwidth: 1 }]',
      /links\.0\.to is "a".*another host/,
    ],
    [
      'hosts: [{ name: a, devices: [cpu] }, { name: b, devices: [cpu] }]\nlinks: [{ from: a, to: b, bandwidth: 1 }, { from: b, to: a, bandwidth: 2 }]',
      /links\.1 joins a and b again/,
    ],
    ['hosts: [{ name: "a\\e[2J", devices: [cpu] }]', /hosts\.0\.name is "a\\u001b\[2J"; allowed: 1 to 253/],
    ['hosts: [{ name: "\\u202ea", devices: [cpu] }]', /hosts\.0\.name is .*none of them control or format/],
    ['hosts: [{ name: a, devices: ["c\\npu"] }]', /hosts\.0\.devices\.0 is "c\\npu"/],
    [
      'hosts: [{ name: a, devices: [cpu] }, { name: b, devices: [cpu] }]\nlinks: [{ from: a, to: b, bandwidth: 1, latencyMicroseconds: 1.0e-300 }]',
      /links\.0\.latencyMicroseconds is 1e-300; allowed: microseconds from 0\.001 to 1e9/,
    ],
    ['hosts: [', /cluster\.yaml: topology is not YAML/],
  ])('a broken file names the key, the value and what is allowed: %j', (body, message) => {
    expect(() => file(body)).toThrow(message);
    expect(() => file(body)).toThrow(expect.objectContaining({ code: 'CONFIG_INVALID' }));
  });

  test('links between hosts are told apart, whatever the hosts are called', () => {
    const names = ['A and B', 'B', 'A', 'B and B'];
    const hosts = names.map((name) => `{ name: ${name}, devices: [cpu] }`).join(', ');
    const links = ['{ from: A and B, to: B, bandwidth: 1 }', '{ from: A, to: B and B, bandwidth: 1 }'].join(
      ', ',
    );
    expect(file(`hosts: [${hosts}]\nlinks: [${links}]`).links).toHaveLength(2);
  });

  test('a file that is not there is named', () => {
    expect(() => readTopology('/nonexistent/cluster.yaml')).toThrow(
      /\/nonexistent\/cluster\.yaml.*cannot be read/,
    );
  });

  test('a file without an end is not read to it', () => {
    expect(() => readTopology('/dev/zero')).toThrow(
      '/dev/zero: topology cannot be read: it has more than 16777216 bytes',
    );
  });
});

describe('places of workers', () => {
  const topology = file(twoHosts);

  test('a worker on a host or device that the file lacks is refused by name', () => {
    expect(() => checkPlace(topology, { name: 'w', host: 'gamma', device: 'cpu' })).toThrow(
      /host is "gamma"; allowed: a host of the topology: alpha, beta/,
    );
    expect(() => checkPlace(topology, { name: 'w', host: 'alpha', device: 'cuda:0' })).toThrow(
      /device is "cuda:0"; allowed: a device of host alpha: cpu, cpu/,
    );
    checkPlace(topology, { name: 'w', host: 'beta', device: 'cuda:0' });
  });

  test('workers take turns between hosts', () => {
    const workers = [
      { name: 'a1', host: 'alpha', device: 'cpu' },
      { name: 'a2', host: 'alpha', device: 'cpu' },
      { name: 'b1', host: 'beta', device: 'cpu' },
      { name: 'b2', host: 'beta', device: 'cuda:0' },
    ];
    expect(orderWorkers(workers, topology)).toEqual(['a1', 'b2', 'a2', 'b1']);
  });

  test('without a topology the order is that of the names, numbers by value', () => {
    const workers = ['worker-10', 'worker-2', 'worker-1'].map((name) => ({ name, host: '', device: 'cpu' }));
    expect(orderWorkers(workers, null)).toEqual(['worker-1', 'worker-2', 'worker-10']);
  });

  test('every worker appears exactly once, in an order that does not depend on who joined first', () => {
    const place = fc.record({
      host: fc.constantFrom('alpha', 'beta'),
      device: fc.constantFrom('cpu', 'cuda:0'),
    });
    fc.assert(
      fc.property(
        fc.array(place, { maxLength: 12 }),
        fc.boolean(),
        fc.infiniteStream(fc.nat()),
        (places, known, keys) => {
          const workers = places.map((at, index) => ({ ...at, name: `w${index}` }));
          const order = orderWorkers(workers, known ? topology : null);
          expect([...order].sort()).toEqual(workers.map(({ name }) => name).sort());
          const shuffled = workers
            .map((worker) => ({ worker, key: keys.next().value! }))
            .sort((a, b) => a.key - b.key)
            .map(({ worker }) => worker);
          expect(orderWorkers(shuffled, known ? topology : null)).toEqual(order);
        },
      ),
    );
  });
});

describe('the topology of a Kubernetes cluster', () => {
  const label = (zone: string, rack: string) => ({
    'topology.kubernetes.io/zone': zone,
    'topology.kubernetes.io/rack': rack,
  });
  const nodes = new Map<string, Record<string, string>>([
    ['node-1', label('a', '1')],
    ['node-2', label('a', '1')],
    ['node-3', label('a', '2')],
    ['node-4', { ...label('b', '3'), 'nvidia.com/gpu.clique': 'fabric.7', other: 'x' }],
    ['node-10', {}],
  ]);
  const topology = topologyOf(nodes);

  test('has the nodes with their zones, racks and cliques, neighbours in other zones and racks', () => {
    expect(topology.hosts.map(({ name }) => name)).toEqual([
      'node-1',
      'node-4',
      'node-10',
      'node-3',
      'node-2',
    ]);
    expect(topology.hosts[0]).toEqual({ name: 'node-1', devices: null, zone: 'a', rack: '1' });
    expect(topology.hosts[1]).toEqual({
      name: 'node-4',
      devices: null,
      zone: 'b',
      rack: '3',
      clique: 'fabric.7',
    });
    expect(topology.hosts[2]).toEqual({ name: 'node-10', devices: null });
  });

  test('orders workers host by host, whatever their devices, those of nodes that it does not know last', () => {
    const place = (name: string, host: string) => ({ name, host, device: 'cuda:0' });
    const places = [place('w0', 'new'), place('w1', 'node-1'), place('w2', 'node-1'), place('w3', 'node-4')];
    for (const one of places) expect(() => checkPlace(topology, one)).not.toThrow();
    expect(orderWorkers(places, topology)).toEqual(['w1', 'w3', 'w2', 'w0']);
  });
});

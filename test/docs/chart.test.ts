import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import { parse } from 'yaml';
import { packageRoot } from '../../native/locate.js';
import { coordinatorSchema, modelFields } from '../../services/coordinator/config.js';
import { routerFields, routerSchema } from '../../services/router/config.js';
import { workerSchema } from '../../services/worker/config.js';

// What needs Helm is checked by scripts/check-chart.sh.
const chart = join(packageRoot(), 'deploy', 'chart');
const read = (file: string) => readFileSync(join(chart, file), 'utf8');

interface Schema {
  enum?: string[];
  properties?: Record<string, Schema>;
  propertyNames?: Schema;
}

const { definitions, properties } = JSON.parse(read('values.schema.json')) as {
  definitions: Record<string, Schema>;
  properties: Record<string, Schema>;
};

/** What the chart decides for every process: where it listens, who it is, what it asks and presents. */
const decided = [
  ...['host', 'port', 'metricsPort', 'insecure', 'trace', 'name', 'advertiseHost'],
  ...['tlsCa', 'tlsCert', 'tlsKey', 'tlsClientCa'],
  ...['nodeToken', 'nodeTokenFile', 'operatorToken', 'operatorTokenFile', 'clientToken', 'clientTokenFile'],
];
/** Keys of a router that the coordinator heeds without one. */
const ofCoordinatorToo = ['threads', 'leaseMs', 'drainMs'];
const decidedFor = {
  coordinator: [
    ...['lease', 'leaseName', 'etcd', 'etcdCa', 'etcdCert', 'etcdKey'],
    ...['workers', 'topology', 'router', ...Object.keys(modelFields)],
    ...Object.keys(routerFields).filter((key) => !ofCoordinatorToo.includes(key)),
  ],
  router: ['coordinator'],
  worker: ['coordinator', 'topologyHost', 'device', 'model'],
};

test.each([
  ['coordinator', Object.keys(coordinatorSchema.shape)],
  ['router', Object.keys(routerSchema.shape)],
  ['worker', Object.keys(workerSchema.shape)],
] as const)('the chart decides each key of a %s, or leaves it to values', (role, keys) => {
  const left = keys.filter((key) => ![...decided, ...decidedFor[role]].includes(key));
  expect(definitions[`${role}Config`]!.propertyNames!.enum!.sort()).toEqual(left.sort());
});

test('model.config of the chart has the keys of the model', () => {
  const { config } = properties.model!.properties!;
  expect(Object.keys(config!.properties!)).toEqual(Object.keys(modelFields));
});

test('what a pod may have is allowed for every component', () => {
  const { pod, podKey } = definitions;
  expect(podKey!.enum).toEqual(Object.keys(pod!.properties!));
  expect(Object.keys((parse(read('values.yaml')) as { pod: object }).pod)).toEqual(podKey!.enum);
});

test('the chart installs the version of this package', () => {
  const { version } = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8'));
  expect((parse(read('Chart.yaml')) as { appVersion: string }).appVersion).toBe(version);
});

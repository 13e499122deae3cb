/**
 * Looks through the rendered chart in a directory: every process reads its configuration as it would in its pod, and what names
 * something else finds it. Exits with 1 and a line for each thing that is wrong.
 *   node scripts/check-chart.mjs DIRECTORY
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseAllDocuments } from 'yaml';
import { loadConfig } from '../dist/services/common/config.js';
import { endMsMax } from '../dist/services/common/lifecycle.js';
import { checkTimes, coordinatorSchema, modelSourceOf } from '../dist/services/coordinator/config.js';
import { checkPlace, parseTopology } from '../dist/services/coordinator/topology.js';
import { routerSchema } from '../dist/services/router/config.js';
import { workerSchema } from '../dist/services/worker/config.js';

const schemas = { coordinator: coordinatorSchema, router: routerSchema, worker: workerSchema };
const [directory] = process.argv.slice(2);
const scratch = mkdtempSync(join(tmpdir(), 'switchyard-chart-'));
const faults = [];

const objects = readdirSync(directory, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .flatMap((entry) => parseAllDocuments(readFileSync(join(entry.parentPath, entry.name), 'utf8')))
  .map((document) => document.toJS())
  .filter((object) => object !== null);
const ofKind = (kind) => objects.filter((object) => object.kind === kind);
const named = (kind, name) => ofKind(kind).find(({ metadata }) => metadata.name === name);

function expect(holds, text) {
  if (!holds) faults.push(text);
}

const workloads = [...ofKind('Deployment'), ...ofKind('StatefulSet')];
const selects = (labels, workload) =>
  Object.entries(labels).every(([key, value]) => workload.spec.template.metadata.labels[key] === value);
const selected = (labels) => workloads.filter((workload) => selects(labels, workload));

/** Stands for what Kubernetes puts there. */
const fieldValues = { 'status.podIP': '10.1.2.3', 'spec.nodeName': 'node-a' };

function environmentOf({ metadata }, { env }) {
  return Object.fromEntries(
    env.map(({ name, value, valueFrom }) => [
      name,
      value ??
        fieldValues[valueFrom.fieldRef?.fieldPath] ??
        (valueFrom.resourceFieldRef ? '1' : `${metadata.name}-12345`),
    ]),
  );
}

/** The configuration with which a workload's container runs. */
function configOf(workload) {
  const { containers, volumes } = workload.spec.template.spec;
  const [container] = containers;
  const [section] = container.args;
  const map = named('ConfigMap', volumes.find(({ name }) => name === 'config').configMap.name);
  const path = join(scratch, `${workload.metadata.name}.yaml`);
  writeFileSync(path, map.data['config.yaml']);
  const env = environmentOf(workload, container);
  return { section, map, config: loadConfig(schemas[section], { env, file: { path, section } }) };
}

function checkWorkload(workload) {
  const { name } = workload.metadata;
  const { section, map, config } = configOf(workload);
  const pod = workload.spec.template.spec;
  const [container] = pod.containers;
  expect(selects(workload.spec.selector.matchLabels, workload), `${name}: its selector misses its pods`);
  expect(
    named('ServiceAccount', pod.serviceAccountName),
    `${name}: no ServiceAccount ${pod.serviceAccountName}`,
  );
  const preStopMs = (container.lifecycle?.preStop.sleep.seconds ?? 0) * 1000;
  expect(
    pod.terminationGracePeriodSeconds * 1000 > endMsMax(config.drainMs) + preStopMs,
    `${name}: ${pod.terminationGracePeriodSeconds} s are too few for a drain of ${config.drainMs} ms`,
  );
  for (const { name: port, containerPort } of container.ports) {
    const set = port === 'grpc' ? config.port : config.metricsPort;
    expect(set === containerPort, `${name}: port ${port} is ${containerPort}, the process takes ${set}`);
  }
  expect(config.advertiseHost === '10.1.2.3', `${name}: it advertises ${config.advertiseHost}`);
  checkTokens(name, config, pod);
  if (section === 'coordinator') checkCoordinator(config, map, workload);
  else checkNode(workload, config);
  checkBudget(workload, section);
  if (workload.kind === 'StatefulSet')
    expect(named('Service', workload.spec.serviceName), `${name}: no Service ${workload.spec.serviceName}`);
}

/** Every token file that the process reads is there, and no other. */
function checkTokens(name, config, { containers, volumes }) {
  const { mountPath } = containers[0].volumeMounts.find((mount) => mount.name === 'tokens');
  const { secret } = volumes.find((volume) => volume.name === 'tokens');
  const mounted = secret.items.map(({ path }) => `${mountPath}/${path}`).sort();
  const read = [config.clientTokenFile, config.nodeTokenFile, config.operatorTokenFile].filter(
    (path) => path,
  );
  expect(`${mounted}` === `${read.sort()}`, `${name}: it reads ${read}, its pod has ${mounted}`);
  expect(config.insecure === false, `${name}: it is insecure`);
}

const ofComponent = (component) =>
  workloads.filter(({ metadata }) => metadata.labels['app.kubernetes.io/component'] === component);
const workers = ofComponent('worker');

function checkCoordinator(config, map, { metadata, spec }) {
  checkTimes(config);
  checkRole(metadata.name, spec.template.spec, config);
  modelSourceOf(config);
  const replicas = workers.reduce((sum, { spec }) => sum + spec.replicas, 0);
  expect(config.workers <= replicas, `the coordinator waits for ${config.workers} workers of ${replicas}`);
  if (config.topology === null || config.topology === 'kubernetes') return;
  const topology = parseTopology(map.data['topology.yaml'], 'topology.yaml');
  for (const workload of workers) {
    const { name, topologyHost: host, device } = configOf(workload).config;
    checkPlace(topology, { name, host, device });
  }
}

/** The account of the coordinators may read and write their lease and, where they want them, nodes; nothing else. */
function checkRole(name, pod, config) {
  expect(pod.automountServiceAccountToken === true, `${name}: its pods have no token for the Kubernetes API`);
  const isItsOwn = ({ subjects }) => subjects.some((subject) => subject.name === pod.serviceAccountName);
  const allowed = ['Role', 'ClusterRole'].flatMap((kind) =>
    ofKind(`${kind}Binding`)
      .filter(isItsOwn)
      .flatMap(({ roleRef }) => named(kind, roleRef.name).rules)
      .flatMap(({ resources, verbs, resourceNames = [] }) =>
        verbs.map((verb) => [verb, ...resources, ...resourceNames].join(' ')),
      ),
  );
  const lease = ['create leases', `get leases ${config.leaseName}`, `update leases ${config.leaseName}`];
  const wanted = [...lease, ...(config.topology === 'kubernetes' ? ['list nodes', 'watch nodes'] : [])];
  expect(
    `${allowed.sort()}` === `${wanted.sort()}`,
    `${name}: its account may ${allowed}; it needs ${wanted}`,
  );
}

function checkNode({ metadata }, config) {
  const [coordinators] = ofComponent('coordinator');
  const replicas = Array.from({ length: coordinators.spec.replicas }, (_, at) => at);
  const { name } = coordinators.metadata;
  const pods = replicas.map((at) => `${name}-${at}.${coordinators.spec.serviceName}:7070`);
  expect(
    `${config.coordinator}` === `${pods}`,
    `${metadata.name}: it asks ${config.coordinator}, not ${pods}`,
  );
  expect(config.name.startsWith(metadata.name), `${metadata.name}: its pods are named ${config.name}`);
}

/** It finds one Service with the port, and presents the operator's token that the pods behind it ask for. */
function checkMonitor({ metadata, spec }) {
  const matches = ({ metadata: { labels } }) =>
    Object.entries(spec.selector.matchLabels).every(([key, value]) => labels[key] === value);
  for (const { port, authorization } of spec.endpoints) {
    const services = ofKind('Service')
      .filter(matches)
      .filter(({ spec: { ports } }) => ports.some(({ name }) => name === port));
    expect(
      services.length === 1,
      `ServiceMonitor ${metadata.name} finds ${services.length} services with ${port}`,
    );
    for (const workload of services.flatMap((service) => selected(service.spec.selector))) {
      const { secret } = workload.spec.template.spec.volumes.find(({ name }) => name === 'tokens');
      const { name, key } = authorization.credentials;
      const own = secret.items.find(({ path }) => path === 'operator');
      expect(
        secret.secretName === name && own?.key === key,
        `ServiceMonitor ${metadata.name} presents ${name}/${key}, ${workload.metadata.name} asks for ${own?.key}`,
      );
    }
  }
}

/** One below the replicas, so that one pod at a time may be evicted; none for a single pod. */
function checkBudget(workload, section) {
  const scaler = ofKind('HorizontalPodAutoscaler').find(
    ({ spec }) => spec.scaleTargetRef.name === workload.metadata.name,
  );
  const replicas = scaler?.spec.minReplicas ?? workload.spec.replicas;
  const budget = named('PodDisruptionBudget', workload.metadata.name);
  const least = budget?.spec.minAvailable ?? 0;
  expect(least === replicas - 1, `${workload.metadata.name}: ${least} of ${replicas} must stay available`);
  const policies = ofKind('NetworkPolicy').filter(({ spec }) =>
    selects(spec.podSelector.matchLabels, workload),
  );
  const wanted = ofKind('NetworkPolicy').length === 0 ? 0 : 1;
  expect(
    policies.length === wanted,
    `${workload.metadata.name} (${section}): ${policies.length} network policies`,
  );
}

try {
  for (const workload of workloads) checkWorkload(workload);
  for (const { metadata, spec } of ofKind('Service'))
    expect(selected(spec.selector).length > 0, `Service ${metadata.name} selects nothing`);
  for (const { metadata, spec } of ofKind('PodDisruptionBudget'))
    expect(
      selected(spec.selector.matchLabels).length === 1,
      `the budget ${metadata.name} is not of one workload`,
    );
  for (const monitor of ofKind('ServiceMonitor')) checkMonitor(monitor);
  for (const { metadata, data } of ofKind('ConfigMap').filter(({ metadata }) =>
    /-dashboard-/.test(metadata.name),
  ))
    for (const text of Object.values(data))
      expect(JSON.parse(text).panels.length > 0, `${metadata.name} has no panels`);
} catch (error) {
  faults.push(error.message);
} finally {
  rmSync(scratch, { recursive: true });
}
expect(workloads.length >= 3, `only ${workloads.length} workloads`);
for (const fault of faults) process.stderr.write(`${fault}\n`);
process.exitCode = faults.length === 0 ? 0 : 1;

import { isAddress } from '../common/address.js';
import { callSizes } from '../common/call-sizes.js';
import { controlLimits, isPlainText } from '../common/control-limits.js';
import { invalidArgument } from '../common/errors.js';
import type { LayerExperts } from '../common/generated/switchyard/v1/LayerExperts.js';
import type { NodeHello } from '../common/generated/switchyard/v1/NodeHello.js';
import type { RouterFigures } from '../common/generated/switchyard/v1/RouterFigures.js';
import type { RouterReport } from '../common/generated/switchyard/v1/RouterReport.js';
import type { WorkerReport } from '../common/generated/switchyard/v1/WorkerReport.js';
import { expertsIn } from '../common/layer-experts.js';
import { isNodeName, nodeNameAllowed } from '../common/node-name.js';
import type { ExpertOrder } from '../model/expert-order.js';
import { linkSecretBytes } from '../transport/link-key.js';

const urlCharactersMax = 1024;

/** Throws INVALID_ARGUMENT for a hello that makes no sense. */
export function checkHello(hello: NodeHello, order: ExpertOrder): void {
  const { role, name, address, metricsUrl, linkSecret } = hello;
  if (role !== 'WORKER' && role !== 'ROUTER') throw invalidArgument('role', role, 'WORKER, ROUTER');
  if (!isNodeName(name)) throw invalidArgument('name', name, nodeNameAllowed);
  if (!isAddress(address))
    throw invalidArgument('address', address, 'host:port, whose host --advertise-host gives');
  for (const field of ['host', 'device', 'modelFingerprint', 'version'] as const)
    checkText(field, hello[field]);
  if (
    metricsUrl !== '' &&
    (metricsUrl.length > urlCharactersMax || !/^https?:\/\/[\x21-\x7e]+$/.test(metricsUrl))
  )
    throw invalidArgument('metricsUrl', metricsUrl, `an http URL of at most ${urlCharactersMax} characters`);
  for (const field of ['memoryBytes', 'memorySharedBytes', 'term'] as const) checkCount(field, hello[field]);
  checkExperts('held', hello.held, order);
  const secretBytes = role === 'WORKER' ? linkSecretBytes : 0;
  if (linkSecret.byteLength !== secretBytes)
    throw invalidArgument('link_secret', `${linkSecret.byteLength} bytes`, `${secretBytes} bytes`);
}

/** Throws INVALID_ARGUMENT for what no worker of this model can say of itself. */
export function checkWorkerReport(report: WorkerReport, order: ExpertOrder): void {
  checkExperts('ready', report.ready, order);
  for (const field of ['rowsQueued', 'rowsComputed', 'bytesInFlight', 'rssBytes', 'assignment'] as const)
    checkCount(field, report[field]);
  for (const field of ['computeSeconds', 'eventLoopUtilization'] as const) checkFigure(field, report[field]);
  checkSizes('rowsBySize', report.rowsBySize, checkCount);
  checkSizes('secondsBySize', report.secondsBySize, checkFigure);
  for (const part of ['load', 'device'] as const) {
    for (const [field, value] of Object.entries(report[part] ?? {}))
      if (typeof value === 'number') checkFigure(`${part}.${field}`, value);
  }
}

/** Throws INVALID_ARGUMENT for what no router of this model can say of itself. */
export function checkRouterReport(report: RouterReport, order: ExpertOrder): void {
  const { loads, links, notReady, figures, held } = report;
  if (loads.length > order.layers.length)
    throw invalidArgument('loads', `${loads.length} layers`, atMost(order.layers.length));
  for (const { layer, rows, steered } of loads) {
    const experts = order.experts(layer);
    const allowed = experts > 0 ? `${experts * 4}, 4 for each of its experts` : 'a layer of the model';
    if (experts === 0 || rows.byteLength !== experts * 4)
      throw invalidArgument('loads', `${rows.byteLength} bytes of layer ${layer}`, allowed);
    if (steered.byteLength > 0 && steered.byteLength !== experts * 4)
      throw invalidArgument(
        'loads.steered',
        `${steered.byteLength} bytes of layer ${layer}`,
        `0, or ${allowed}`,
      );
  }
  for (const field of ['tokens', 'bytesInFlight', 'rssBytes', 'termInUse', 'epochInUse'] as const)
    checkCount(field, report[field]);
  checkFigure('eventLoopUtilization', report.eventLoopUtilization);
  checkText('notReady', notReady);
  const { membersMax } = controlLimits;
  if (links.length > membersMax) throw invalidArgument('links', `${links.length} links`, atMost(membersMax));
  for (const { worker, lanes, reason } of links) {
    if (!isNodeName(worker)) throw invalidArgument('links.worker', worker, nodeNameAllowed);
    checkText('links.lanes', lanes);
    checkText('links.reason', reason);
  }
  if (held.length > membersMax) throw invalidArgument('held', `${held.length} workers`, atMost(membersMax));
  for (const { worker, experts } of held) {
    if (!isNodeName(worker)) throw invalidArgument('held.worker', worker, nodeNameAllowed);
    checkExperts('held.experts', experts, order);
  }
  if (figures !== null) checkRouterFigures(figures);
}

function checkRouterFigures({ batches, traffic }: RouterFigures): void {
  const { batchesToldMax, membersMax } = controlLimits;
  if (batches.length > batchesToldMax)
    throw invalidArgument('figures.batches', `${batches.length} batches`, atMost(batchesToldMax));
  if (traffic.length > membersMax)
    throw invalidArgument('figures.traffic', `${traffic.length} links`, atMost(membersMax));
  for (const { batchId, tokens, tokensAnswered, seconds } of batches) {
    checkText('figures.batches.batchId', batchId);
    checkCount('figures.batches.tokens', tokens);
    checkCount('figures.batches.tokensAnswered', tokensAnswered);
    checkFigure('figures.batches.seconds', seconds);
  }
  for (const { worker, bytesSent, bytesReturned } of traffic) {
    if (!isNodeName(worker)) throw invalidArgument('figures.traffic.worker', worker, nodeNameAllowed);
    checkCount('figures.traffic.bytesSent', bytesSent);
    checkCount('figures.traffic.bytesReturned', bytesReturned);
  }
}

/** Throws INVALID_ARGUMENT for a text that is not one line of bounded length. */
export function checkText(field: string, text: string): void {
  if (isPlainText(text)) return;
  const allowed = `one line of at most ${controlLimits.textCharactersMax} characters`;
  throw invalidArgument(field, text, allowed);
}

function checkExperts(field: string, named: readonly LayerExperts[], order: ExpertOrder): void {
  const count = named.reduce((sum, { experts }) => sum + experts.length, 0);
  if (count > order.total) throw invalidArgument(field, `${count} experts`, atMost(order.total));
  for (const { layer, expert } of expertsIn(named)) {
    if (order.indexOf({ layer, expert }) < 0)
      throw invalidArgument(field, `layer ${layer} expert ${expert}`, 'experts of the model');
  }
}

/** Counts come as 64-bit integers; beyond 2^53 they are not exact. */
function checkCount(field: string, value: number): void {
  if (!Number.isSafeInteger(value) || value < 0) throw invalidArgument(field, value, '0 to 2^53 - 1');
}

function checkFigure(field: string, value: number): void {
  if (!(value >= 0 && value <= Number.MAX_SAFE_INTEGER)) throw invalidArgument(field, value, '0 to 2^53 - 1');
}

/** Sums by size of calls. */
function checkSizes(
  field: string,
  sums: readonly number[],
  check: (field: string, value: number) => void,
): void {
  if (sums.length > callSizes) throw invalidArgument(field, `${sums.length} sizes`, atMost(callSizes));
  for (const sum of sums) check(field, sum);
}

const atMost = (count: number) => `at most ${count}`;

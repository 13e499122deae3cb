import { Access, readTokens } from '../common/access.js';
import { advertised, advertisedUrl } from '../common/advertise.js';
import { ExpertMetrics } from '../common/expert-metrics.js';
import { startGrpcServer } from '../common/grpc-server.js';
import { startHttp } from '../common/http.js';
import { cutMs, endMsMax, type Running } from '../common/lifecycle.js';
import { Liveness } from '../common/liveness.js';
import { createLogger } from '../common/log.js';
import { createRegistry } from '../common/metrics.js';
import { boundSlabs } from '../common/slabs.js';
import { readTls } from '../common/tls.js';
import { Trace } from '../common/trace.js';
import { unknownKinds } from '../common/unknown-kinds.js';
import { nativeRuntime } from '../runtime/native.js';
import { startTracing } from '../runtime/tracing.js';
import { clientWindowBytes, type RouterConfig, routerSlabs } from './config.js';
import { Router, routerServices } from './router.js';

/** Starts a router as a process of its own. Rejects with CONFIG_INVALID for an address that cannot be bound. */
export async function startRouter(config: RouterConfig): Promise<Running> {
  const { name, host, insecure } = config;
  const tokens = readTokens(config);
  const log = createLogger('router', name, config.logLevel);
  const tls = readTls(config, log);
  const access = new Access(tokens, tls?.asksCallers);
  boundSlabs({ ...routerSlabs(config, name), threads: config.threads });
  const registry = createRegistry('router', name, nativeRuntime.usage);
  const experts = new ExpertMetrics('router', name);
  const trace = Trace.open(config.trace, name, log);
  const tracing = await startTracing('router', config, log);
  const router = new Router({
    config,
    name,
    credential: { token: tokens.node, tls },
    log,
    registry,
    experts,
    trace,
    tracer: tracing,
    runtime: nativeRuntime,
    onUnknown: unknownKinds(registry, log),
    onReady: (ready) => {
      for (const service of routerServices) server.setServing(service, ready);
    },
    live: () => liveness.health().healthy,
  });
  const server = await startGrpcServer({
    host,
    port: config.port,
    access,
    insecure,
    tls,
    messageLimit: { bytesMax: config.messageBytesMax, node: `router ${config.name}` },
    batchesMax: config.batchesMax,
    streamWindowBytes: clientWindowBytes(config),
    services: router.services,
    log,
  });
  const liveness = new Liveness({
    work: () => [router.work],
    standstillMs: config.standstillMs,
    clock: nativeRuntime.clock,
    log,
    onChange: (live) => server.setLive(live),
  });
  const http = await startHttp({
    host,
    port: config.metricsPort,
    access,
    insecure,
    tls,
    log,
    registry,
    experts,
    health: () => liveness.health(),
    ready: () => router.readiness(),
    state: () => router.state(),
    expertState: () => router.expertState(),
  }).catch(async (error) => {
    liveness.close();
    tls?.close();
    await server.close(0);
    throw error;
  });
  const address = advertised(host, server.port, config.advertiseHost);
  const metricsUrl = http.url;
  const membership = router.start({
    coordinators: config.coordinator,
    own: address,
    metrics: advertisedUrl(host, metricsUrl, config.advertiseHost),
  });
  log.info({ event: 'listening', address, metricsUrl });

  const end = async (reason: string): Promise<void> => {
    log.info({ event: 'stopping', reason });
    for (const service of routerServices) server.setServing(service, false);
    await router.stop(reason);
    await server.close(cutMs);
    await http.close();
    tls?.close();
    liveness.close();
    await trace?.close();
    await tracing?.close();
    log.info({ event: 'stopped', reason });
  };
  let ending: Promise<void> | null = null;
  const stop = (reason: string): Promise<void> => {
    ending ??= end(reason);
    return ending;
  };
  const stopped = membership.then(async (error) => {
    await stop(error?.message ?? 'the membership is over');
    if (error !== null) throw error;
  });
  // Whoever waits for `stopped` hears of the error; one that only calls `stop` need not.
  stopped.catch(() => {});
  return { address, metricsUrl, stopped, endMsMax: endMsMax(config.drainMs), stop };
}

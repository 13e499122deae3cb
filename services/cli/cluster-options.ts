import { z } from 'zod';
import { readTokens } from '../common/access.js';
import {
  clientTokenFields,
  decimal,
  humanCount,
  port,
  serverFields,
  serverTlsFields,
  text,
} from '../common/config.js';
import { tlsSettingsOf } from '../common/tls.js';
import type { LocalClusterOptions } from './local-cluster.js';
import type { Flags } from './local-process.js';
import { clientTokenHelp, serverTlsHelp, serverTokenHelp } from './service.js';

/** A cluster of child processes: for every command that starts one. */
export const clusterFields = {
  workers: humanCount(1, 256).default(4),
  routers: humanCount(0, 64).default(0),
  threads: humanCount(1, 1024).nullable().default(null),
  port: port().default(0),
  metricsPort: port().default(0),
  logLevel: serverFields.logLevel,
  logDirectory: text().nullable().default(null),
  ...clientTokenFields,
  nodeToken: serverFields.nodeToken,
  nodeTokenFile: serverFields.nodeTokenFile,
  operatorToken: serverFields.operatorToken,
  operatorTokenFile: serverFields.operatorTokenFile,
  ...serverTlsFields,
  readyTimeout: decimal(1, 86_400).default(600),
};

export const clusterHelp = {
  workers: ['n', 'worker processes'],
  routers: ['n', 'router processes beside the one in the coordinator'],
  threads: ['n', 'compute threads of each worker (default: cores / workers)'],
  port: ['n', 'port of the coordinator; 0: a free one'],
  metricsPort: ['n', "port of the coordinator's /metrics; 0: a free one"],
  logLevel: ['level', 'trace, debug, info, warn, error or silent'],
  logDirectory: ['directory', 'write the log of each process to a file there'],
  ...clientTokenHelp,
  ...serverTokenHelp,
  ...serverTlsHelp,
  readyTimeout: ['seconds', 'how long loading may take'],
} as const;

const clusterSchema = z.object(clusterFields);
export type ClusterConfig = z.infer<typeof clusterSchema>;

/**
 * What to start. `model`: flags of the coordinator that choose the model. `file`: the YAML file, of which every process
 * reads its own section. Every port but the coordinator's is a free one.
 */
export function localClusterOptions(
  config: ClusterConfig,
  model: Flags,
  file: string | null,
): LocalClusterOptions {
  const { workers, routers, threads, port, metricsPort, logLevel } = config;
  const node = { config: file, logLevel, port: 0, metricsPort: 0 };
  return {
    workers,
    routers,
    threads,
    coordinator: { ...node, ...model, port, metricsPort },
    router: node,
    worker: node,
    tokens: readTokens(config),
    tls: tlsSettingsOf(config, true),
    readyTimeoutMs: Math.ceil(config.readyTimeout * 1000),
  };
}

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../../native/locate.js';
import { type PresetName, presets } from '../../services/model/synthetic.js';
import { linkDevice } from '../hosts/calls.js';
import type { Host } from '../hosts/host.js';

const masterPort = 29_500;

/** The interpreter of a Python environment with PyTorch: in SWITCHYARD_PEERS, or .venv in this package; null if there is none. */
export function torchPython(): string | null {
  const python = join(process.env.SWITCHYARD_PEERS ?? join(packageRoot(), '.venv'), 'bin', 'python');
  return existsSync(python) ? python : null;
}

/** What one rank of torch_ep.py prints. */
interface RankOutcome {
  /** Of this rank alone. */
  bare: number;
  /** Of the whole group. */
  tokensPerSecond: number;
}

/** PyTorch's expert parallelism between two hosts: its tokens per second divided by its own bare FFN on both cores. */
export async function torchRatio(
  python: string,
  hosts: readonly Host[],
  preset: PresetName,
  tokens: number,
): Promise<number> {
  const { hidden, ffn, experts, topK, layers, activation } = presets[preset].model;
  const shape = { hidden, ffn, experts, 'top-k': topK, layers, activation };
  const run = { master: `${hosts[0]!.address}:${masterPort}`, tokens: tokens / hosts.length };
  const outcomes = await Promise.all(
    hosts.map(async (host, rank) => {
      const flags = Object.entries({ ...shape, ...run, rank, world: hosts.length });
      const output = await host.call('execute', 'env', [
        `GLOO_SOCKET_IFNAME=${linkDevice}`,
        python,
        join(packageRoot(), 'bench', 'peers', 'torch_ep.py'),
        ...flags.map(([name, value]) => `--${name}=${value}`),
      ]);
      return JSON.parse(output) as RankOutcome;
    }),
  );
  const bare = outcomes.reduce((sum, outcome) => sum + outcome.bare, 0);
  return outcomes[0]!.tokensPerSecond / bare;
}

import type { ClusterDescriptionInput } from './generated/switchyard/v1/ClusterDescription.js';
import type { ClusterViewInput } from './generated/switchyard/v1/ClusterView.js';
import type { LayerCountsInput } from './generated/switchyard/v1/LayerCounts.js';
import type { ModelDescriptionInput } from './generated/switchyard/v1/ModelDescription.js';
import type { NodeFiguresInput } from './generated/switchyard/v1/NodeFigures.js';
import type { PlacementInput } from './generated/switchyard/v1/Placement.js';
import { version } from './version.js';

/** What the process that answers DescribeCluster knows. */
export interface DescriptionParts {
  view: ClusterViewInput;
  /** Null: it was not asked for. */
  placement: PlacementInput | null;
  figures: readonly NodeFiguresInput[];
  model: ModelDescriptionInput;
  /** Of this router; empty: it was not asked for. */
  routed: readonly LayerCountsInput[];
  /** Name of the router that answers, or empty. */
  router: string;
  uptimeMs: number;
}

/** The answer to DescribeCluster. */
export function describeCluster(parts: DescriptionParts): ClusterDescriptionInput {
  const { view, placement, model, routed, router, uptimeMs } = parts;
  const key = ({ role, name }: { role?: unknown; name?: unknown }) => `${role}/${name}`;
  const figures = new Map(parts.figures.map((one) => [key(one), one]));
  const nodes = view.nodes?.map((node) => ({ ...node, figures: figures.get(key(node)) ?? null })) ?? [];
  const uptimeSeconds = uptimeMs / 1000;
  return { view: { ...view, placement, nodes }, model, version, uptimeSeconds, router, routed: [...routed] };
}

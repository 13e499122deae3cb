import { type ExpertMetrics, figuresOf } from '../common/expert-metrics.js';
import { gauge, type Registry } from '../common/metrics.js';
import type { ControlService } from './control-service.js';

/** Gauges of the cluster and its experts, read when the metrics are. */
export function coordinatorMetrics(
  registry: Registry,
  experts: ExpertMetrics,
  control: ControlService,
): void {
  const { cluster } = control;
  const { layers } = cluster.options.model;
  gauge(registry, 'nodes', 'Members by role and state.', ['node_role', 'state'] as const, (metric) => {
    metric.reset();
    for (const node of control.view.nodes ?? []) {
      metric.inc({ node_role: String(node.role).toLowerCase(), state: String(node.state).toLowerCase() });
    }
  });
  gauge(registry, 'cluster_ready', '1 if every expert is ready on a live worker.', [], (metric) =>
    metric.set(control.readiness().ready ? 1 : 0),
  );
  gauge(registry, 'placement_epoch', 'Version of the map from experts to workers.', [], (metric) =>
    metric.set(cluster.epoch),
  );
  gauge(
    registry,
    'placement_term',
    'Of the coordinator: it is higher than that of the one before.',
    [],
    (metric) => metric.set(cluster.term),
  );
  gauge(
    registry,
    'expert_copies',
    'Copies of experts by state: loading, serving, or draining until no router uses them.',
    ['state'] as const,
    (metric) => {
      const counts = cluster.plans.placement.counts();
      for (const state of ['loading', 'serving', 'draining'] as const)
        metric.set(
          { state },
          counts.reduce((sum, count) => sum + count[state], 0),
        );
    },
  );
  gauge(registry, 'feedback_steps', 'Steps of the load feedback loop.', [], (metric) =>
    metric.set(cluster.feedback.version),
  );
  experts.add(
    'gauge',
    'feedback_bias',
    'What the feedback loop adds to the selection score of an expert.',
    () => figuresOf(cluster.feedback.biases()),
  );
  gauge(
    registry,
    'cluster_balancedness',
    'Mean/max of rows over workers in the last window of the feedback loop: 1 is even.',
    ['layer'] as const,
    (metric) => {
      metric.reset();
      for (const { layer } of layers) {
        const value = cluster.balancedness(layer);
        if (value !== null) metric.set({ layer }, value);
      }
    },
  );
}

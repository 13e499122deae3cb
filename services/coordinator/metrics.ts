import { type ExpertMetrics, figuresOf } from '../common/expert-metrics.js';
import { counter, gauge, type Registry, setTotal } from '../common/metrics.js';
import type { Clock } from '../runtime/clock.js';
import type { Cluster } from './cluster.js';
import type { ControlService } from './control-service.js';
import type { Member } from './membership.js';
import type { Spread } from './spread.js';

/** Metrics of the cluster and its experts, read when they are asked for. */
export function coordinatorMetrics(
  registry: Registry,
  experts: ExpertMetrics,
  control: ControlService,
  clock: Clock,
): void {
  const { cluster } = control;
  readNodes(registry, control);
  gauge(registry, 'cluster_ready', '1 if every expert is ready on a live worker.', [], (metric) =>
    metric.set(control.readiness().ready ? 1 : 0),
  );
  readPlacement(registry, cluster);
  readLayers(registry, cluster, clock);
  readPlan(registry, cluster);
  counter(registry, 'feedback_steps_total', 'Steps of the load feedback loop.', [], (metric) =>
    setTotal(metric, cluster.feedback.version),
  );
  experts.add(
    'gauge',
    'feedback_bias',
    'What the feedback loop adds to the selection score of an expert.',
    () => figuresOf(cluster.feedback.biases()),
  );
}

/** A series for each node that is listed; who died is for a while. */
function readNodes(registry: Registry, control: ControlService): void {
  const labels = ['node', 'node_role', 'host', 'device', 'state'] as const;
  const help = 'A node: joining, loading, ready, draining, left, or dead if it said no goodbye. Always 1.';
  gauge(registry, 'node_info', help, labels, (metric) => {
    metric.reset();
    const states = new Map(
      control.view.nodes?.map(({ role, name, state }) => [`${role}/${name}`, String(state)]),
    );
    for (const member of control.cluster.members()) {
      const { name, role, host, device } = member.hello;
      const state = hasLeft(member) ? 'left' : (states.get(`${role}/${name}`) ?? 'joining').toLowerCase();
      metric.set({ node: name, node_role: role.toLowerCase(), host, device, state }, 1);
    }
  });
}

const hasLeft = ({ alive, draining }: Member) => !alive && draining;

function readPlacement(registry: Registry, cluster: Cluster): void {
  const { placement } = cluster.plans;
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
      const counts = placement.counts();
      for (const state of ['loading', 'serving', 'draining'] as const)
        metric.set(
          { state },
          counts.reduce((sum, count) => sum + count[state], 0),
        );
    },
  );
  gauge(registry, 'experts_without_copy', 'Experts that no worker serves.', [], (metric) =>
    metric.set(cluster.plans.started ? placement.missing().length : 0),
  );
}

function readLayers(registry: Registry, cluster: Cluster, clock: Clock): void {
  const { layers } = cluster.options.model;
  const labels = ['layer', 'statistic'] as const;
  const spread = (name: string, help: string, read: () => Iterable<[layer: number, spread: Spread]>) =>
    gauge(registry, name, help, labels, (metric) => {
      metric.reset();
      for (const [layer, values] of read())
        for (const [statistic, value] of Object.entries(values)) metric.set({ layer, statistic }, value);
    });
  const loads = () => cluster.layerLoads(clock.now());
  spread(
    'layer_load_rows_per_second',
    'Rows a second routed to an expert of a layer of late: the least, the median and the most.',
    () => loads().map(({ layer, rows }) => [layer, rows]),
  );
  spread('layer_copies', 'Copies that serve an expert of a layer: the fewest, the median and the most.', () =>
    layers.map(({ layer }) => [layer, cluster.layerCopies(layer)]),
  );
  gauge(
    registry,
    'cluster_balancedness',
    'Mean/max over workers of the rows of a layer of late, if copies share them evenly: 1 is even.',
    ['layer'] as const,
    (metric) => {
      metric.reset();
      for (const { layer, balancedness } of loads()) metric.set({ layer }, balancedness);
    },
  );
}

/** Whether it would pay to move copies. No series while there is no plan. */
function readPlan(registry: Registry, { plans }: Cluster): void {
  type Outlook = NonNullable<typeof plans.outlook>;
  const read = (name: string, help: string, figure: (outlook: Outlook) => number) =>
    gauge(registry, name, help, [], (metric) => {
      if (plans.outlook === null) metric.remove();
      else metric.set(figure(plans.outlook));
    });
  read(
    'plan_net_gain_seconds',
    'What the busiest workers would compute less in an hour by the last plan, less what loading costs.',
    ({ netGainSeconds }) => netGainSeconds,
  );
  read('plan_copies_to_load', 'Copies that the last plan would load.', ({ copiesToLoad }) => copiesToLoad);
}

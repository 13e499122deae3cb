import { type ExpertMetrics, figuresOf } from '../common/expert-metrics.js';
import { counter, type Gauge, gauge, type Registry, setTotal } from '../common/metrics.js';
import type { ModelSpec } from '../model/spec.js';
import type { Clock } from '../runtime/clock.js';
import type { ControlService } from './control-service.js';
import type { Member } from './membership.js';
import type { Spread } from './spread.js';

/** Where they are read from: null while another coordinator leads, and then there are no series. */
type Leading = () => ControlService | null;

/** Metrics of the cluster and its experts, read when they are asked for. */
export function coordinatorMetrics(
  registry: Registry,
  experts: ExpertMetrics,
  model: ModelSpec,
  clock: Clock,
  leading: Leading,
): void {
  gauge(registry, 'coordinator_leading', '1 while this coordinator leads.', [], (metric) =>
    metric.set(leading() === null ? 0 : 1),
  );
  readNodes(registry, leading);
  clusterGauge(
    registry,
    leading,
    'cluster_ready',
    '1 if every expert is ready on a live worker.',
    [],
    (metric, control) => metric.set(control.readiness().ready ? 1 : 0),
  );
  readPlacement(registry, leading);
  readLayers(registry, model, clock, leading);
  readPlan(registry, leading);
  counter(registry, 'feedback_steps_total', 'Steps of the load feedback loop.', [], (metric) =>
    setTotal(metric, leading()?.cluster.feedback.version ?? 0),
  );
  experts.add(
    'gauge',
    'feedback_bias',
    'What the feedback loop adds to the selection score of an expert.',
    () => figuresOf(leading()?.cluster.feedback.biases() ?? new Map()),
  );
}

function clusterGauge<Label extends string = never>(
  registry: Registry,
  leading: Leading,
  name: string,
  help: string,
  labelNames: readonly Label[],
  read: (metric: Gauge<Label>, control: ControlService) => void,
): void {
  gauge(registry, name, help, labelNames, (metric) => {
    const control = leading();
    metric.reset();
    if (control === null) metric.remove();
    else read(metric, control);
  });
}

/** A series for each node that is listed; who died is for a while. */
function readNodes(registry: Registry, leading: Leading): void {
  const labels = ['node', 'node_role', 'host', 'device', 'state'] as const;
  const help = 'A node: joining, loading, ready, draining, left, or dead if it said no goodbye. Always 1.';
  clusterGauge(registry, leading, 'node_info', help, labels, (metric, control) => {
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

function readPlacement(registry: Registry, leading: Leading): void {
  const figure = (name: string, help: string, read: (control: ControlService) => number) =>
    clusterGauge(registry, leading, name, help, [], (metric, control) => metric.set(read(control)));
  figure('placement_epoch', 'Version of the map from experts to workers.', ({ cluster }) => cluster.epoch);
  figure(
    'placement_term',
    'Of the coordinator: it is higher than that of the one before.',
    ({ cluster }) => cluster.term,
  );
  clusterGauge(
    registry,
    leading,
    'expert_copies',
    'Copies of experts by state: loading, serving, or draining until no router uses them.',
    ['state'] as const,
    (metric, { cluster }) => {
      const counts = cluster.plans.placement.counts();
      for (const state of ['loading', 'serving', 'draining'] as const)
        metric.set(
          { state },
          counts.reduce((sum, count) => sum + count[state], 0),
        );
    },
  );
  figure('experts_without_copy', 'Experts that no worker serves.', ({ cluster: { plans } }) =>
    plans.started ? plans.placement.missing().length : 0,
  );
}

function readLayers(registry: Registry, { layers }: ModelSpec, clock: Clock, leading: Leading): void {
  const labels = ['layer', 'statistic'] as const;
  const spread = (
    name: string,
    help: string,
    read: (control: ControlService) => Iterable<[layer: number, spread: Spread]>,
  ) =>
    clusterGauge(registry, leading, name, help, labels, (metric, control) => {
      for (const [layer, values] of read(control))
        for (const [statistic, value] of Object.entries(values)) metric.set({ layer, statistic }, value);
    });
  const loads = ({ cluster }: ControlService) => cluster.layerLoads(clock.now());
  spread(
    'layer_load_rows_per_second',
    'Rows a second routed to an expert of a layer of late: the least, the median and the most.',
    (control) => loads(control).map(({ layer, rows }) => [layer, rows]),
  );
  spread(
    'layer_copies',
    'Copies that serve an expert of a layer: the fewest, the median and the most.',
    ({ cluster }) => layers.map(({ layer }) => [layer, cluster.layerCopies(layer)]),
  );
  clusterGauge(
    registry,
    leading,
    'cluster_balancedness',
    'Mean/max over workers of the rows of a layer of late, if copies share them evenly: 1 is even.',
    ['layer'] as const,
    (metric, control) => {
      for (const { layer, balancedness } of loads(control)) metric.set({ layer }, balancedness);
    },
  );
}

/** Whether it would pay to move copies. No series while there is no plan. */
function readPlan(registry: Registry, leading: Leading): void {
  type Outlook = NonNullable<ControlService['cluster']['plans']['outlook']>;
  const read = (name: string, help: string, figure: (outlook: Outlook) => number) =>
    clusterGauge(registry, leading, name, help, [], (metric, { cluster: { plans } }) => {
      if (plans.outlook === null) metric.remove();
      else metric.set(figure(plans.outlook));
    });
  read(
    'plan_net_gain_seconds',
    'What the busiest workers would compute less in an hour by the last plan, less what loading costs.',
    ({ netGainSeconds }) => netGainSeconds,
  );
  read('plan_copies_to_load', 'Copies that the last plan would load.', ({ copiesToLoad }) => copiesToLoad);
  read('plan_load_seconds', 'How long loading them would take.', ({ secondsToLoad }) => secondsToLoad);
}

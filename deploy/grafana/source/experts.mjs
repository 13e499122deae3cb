import { cluster, dashboard, matrix, stat, third, timeseries } from './panels.mjs';

const byStatistic = (metric, statistic) => `max by (layer) (${metric}{${cluster}, statistic="${statistic}"})`;

export const experts = dashboard({
  uid: 'switchyard-experts',
  title: 'Switchyard / Experts',
  description: 'Who computes what, how even that is, and where the copies are.',
  panels: [
    matrix({
      title: 'Rows by layer and worker',
      description:
        'Rows a second that each worker computes in each layer: an even cluster has one colour in a row.',
      unit: 'short',
      expression: `sum by (layer, name) (job_layer_name:switchyard_computed_rows:rate5m{${cluster}})`,
      row: 'layer',
      column: 'name',
    }),
    timeseries({
      title: 'Balancedness of layers',
      description: 'Mean/max over workers of the rows of a layer, if copies share them evenly; 1 is even.',
      unit: 'percentunit',
      max: 1,
      targets: [[`min by (layer) (switchyard_cluster_balancedness{${cluster}})`, 'layer {{layer}}']],
    }),
    timeseries({
      title: 'Hottest expert of each layer',
      description: 'Rows of the most loaded expert by those of the median one.',
      unit: 'short',
      targets: [
        [
          `${byStatistic('switchyard_layer_load_rows_per_second', 'max')} / (${byStatistic('switchyard_layer_load_rows_per_second', 'p50')} > 0)`,
          'layer {{layer}}',
        ],
      ],
    }),
    timeseries({
      title: 'Copies of an expert',
      description: 'The fewest and the most copies that serve an expert, over all layers.',
      unit: 'short',
      width: third,
      targets: [
        [`min(switchyard_layer_copies{${cluster}, statistic="min"})`, 'fewest'],
        [`max(switchyard_layer_copies{${cluster}, statistic="max"})`, 'most'],
      ],
    }),
    timeseries({
      title: 'Copies by state',
      description: 'Copies that load, serve, or wait until no router uses them.',
      unit: 'short',
      width: third,
      targets: [[`sum by (state) (switchyard_expert_copies{${cluster}})`, '{{state}}']],
    }),
    timeseries({
      title: 'Experts loaded',
      description: 'Experts that each worker has ready.',
      unit: 'short',
      width: third,
      targets: [[`switchyard_experts_loaded{${cluster}}`, '{{name}}']],
    }),
    stat({
      title: 'Net gain of rebalancing',
      description:
        'What the busiest workers would compute less in an hour by the last plan, less what loading costs.',
      unit: 's',
      targets: [[`max(switchyard_plan_net_gain_seconds{${cluster}})`]],
      width: third,
    }),
    stat({
      title: 'Copies that rebalancing would load',
      description: 'By the last plan.',
      unit: 'short',
      targets: [[`max(switchyard_plan_copies_to_load{${cluster}})`]],
      width: third,
    }),
    stat({
      title: 'Steps of the feedback loop',
      description: 'Steps a second of the selection bias.',
      unit: 'short',
      targets: [[`sum(rate(switchyard_feedback_steps_total{${cluster}}[$__rate_interval]))`]],
      width: third,
    }),
  ],
});

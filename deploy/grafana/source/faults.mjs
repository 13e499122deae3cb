import { cluster, dashboard, third, timeseries } from './panels.mjs';

const rate = (metric) => `sum by (name) (rate(switchyard_${metric}{${cluster}}[$__rate_interval]))`;

export const faults = dashboard({
  uid: 'switchyard-faults',
  title: 'Switchyard / Faults',
  description: 'What was lost, what was done again, and who is not well.',
  panels: [
    timeseries({
      title: 'Alerts',
      description: 'Alerts of Switchyard that fire or are about to; 0: none.',
      unit: 'short',
      targets: [['sum by (alertname) (ALERTS{alertname=~"Switchyard.*"}) or vector(0)', '{{alertname}}']],
    }),
    timeseries({
      title: 'Nodes by state',
      description: 'Dead nodes went without a goodbye; those that left said so.',
      unit: 'short',
      targets: [
        [`count by (node_role, state) (switchyard_node_info{${cluster}})`, '{{node_role}} {{state}}'],
      ],
    }),
    timeseries({
      title: 'Retries',
      description: 'Token batches a second that were sent in the place of one that got no answer.',
      unit: 'short',
      width: third,
      targets: [[rate('retries_total'), '{{name}}']],
    }),
    timeseries({
      title: 'Failed-over rows',
      description: 'Rows of experts a second in token batches that were sent again.',
      unit: 'short',
      width: third,
      targets: [[`job:switchyard_failed_over_rows:rate5m{${cluster}}`, '{{job}}']],
    }),
    timeseries({
      title: 'Dropped rows',
      description: 'Rows a second of answers that came too late to be used.',
      unit: 'short',
      width: third,
      targets: [[rate('dropped_rows_total'), '{{name}}']],
    }),
    timeseries({
      title: 'Batches that failed',
      description: 'A second, by code.',
      unit: 'short',
      targets: [
        [
          `sum by (outcome) (job_outcome:switchyard_batches:rate5m{${cluster}, outcome!="complete"}) or vector(0)`,
          '{{outcome}}',
        ],
      ],
    }),
    timeseries({
      title: 'Experts without a copy',
      description: 'Experts that no worker serves.',
      unit: 'short',
      targets: [[`sum(switchyard_experts_without_copy{${cluster}})`, 'experts']],
    }),
    timeseries({
      title: 'Term and epoch',
      description: 'The term rises with each coordinator, the epoch with each change of what is served.',
      unit: 'short',
      width: third,
      targets: [
        [`max(switchyard_placement_term{${cluster}})`, 'term'],
        [`max(switchyard_placement_epoch{${cluster}})`, 'epoch'],
      ],
    }),
    timeseries({
      title: 'Nodes without a coordinator',
      description: 'Routers and workers that no coordinator leads.',
      unit: 'short',
      width: third,
      targets: [[`count(switchyard_coordinator_connected{${cluster}} == 0) or vector(0)`, 'nodes']],
    }),
    timeseries({
      title: 'Processes that stand still',
      description: "Processes whose own work doesn't get on.",
      unit: 'short',
      width: third,
      targets: [[`count(switchyard_healthy{${cluster}} == 0) or vector(0)`, 'processes']],
    }),
  ],
});

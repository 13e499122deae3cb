import { cluster, dashboard, stat, table, third, timeseries } from './panels.mjs';

const bad = [
  [null, 'green'],
  [1, 'red'],
];

export const overview = dashboard({
  uid: 'switchyard-overview',
  title: 'Switchyard / Overview',
  description: 'Is the cluster well, what does it do, and who is busy.',
  panels: [
    stat({
      title: 'Ready',
      description: 'Whether every expert is ready on a live worker.',
      unit: 'bool_yes_no',
      targets: [[`min(switchyard_cluster_ready{${cluster}})`]],
      steps: [
        [null, 'red'],
        [1, 'green'],
      ],
    }),
    stat({
      title: 'Tokens',
      description: 'Tokens received a second.',
      unit: 'short',
      targets: [[`sum(job:switchyard_tokens:rate5m{${cluster}})`]],
    }),
    stat({
      title: 'Batches under way',
      description: 'At all routers.',
      unit: 'short',
      targets: [[`sum(switchyard_batches_live{${cluster}})`]],
    }),
    stat({
      title: 'Experts without a copy',
      description: 'Experts that no worker serves.',
      unit: 'short',
      targets: [[`sum(switchyard_experts_without_copy{${cluster}})`]],
      steps: bad,
    }),
    stat({
      title: 'Workers lost',
      description: 'Workers that went without a goodbye and are still listed.',
      unit: 'short',
      targets: [[`sum(switchyard_node_info{${cluster}, node_role="worker", state="dead"}) or vector(0)`]],
      steps: bad,
    }),
    stat({
      title: 'Alerts',
      description: 'Alerts of Switchyard that fire.',
      unit: 'short',
      targets: [['count(ALERTS{alertname=~"Switchyard.*", alertstate="firing"}) or vector(0)']],
      steps: bad,
    }),
    timeseries({
      title: 'Tokens',
      description: 'Tokens received a second, by router.',
      unit: 'short',
      width: third,
      targets: [[`rate(switchyard_tokens_total{${cluster}}[$__rate_interval])`, '{{name}}']],
    }),
    timeseries({
      title: 'Balancedness',
      description:
        'Mean/max over workers of the rows that they compute, of the least even and the mean layer; 1 is even.',
      unit: 'percentunit',
      max: 1,
      width: third,
      targets: [
        [`min(job_layer:switchyard_balancedness:ratio5m{${cluster}})`, 'least even layer'],
        [`avg(job_layer:switchyard_balancedness:ratio5m{${cluster}})`, 'mean of layers'],
      ],
    }),
    timeseries({
      title: 'Event loops',
      description: 'Share of time that the event loop of each process is busy.',
      unit: 'percentunit',
      max: 1,
      width: third,
      targets: [[`job_name:switchyard_event_loop_busy:ratio_rate5m{${cluster}}`, '{{name}}']],
    }),
    timeseries({
      title: 'Time of a chunk at a layer',
      description: 'Mean seconds of each stage; an exchange holds the waiting and computing of its worker.',
      unit: 's',
      targets: ['norm', 'gate', 'group', 'exchange', 'combine'].map((stage) => [
        `sum(rate(switchyard_${stage}_seconds_sum{${cluster}}[$__rate_interval])) / sum(rate(switchyard_${stage}_seconds_count{${cluster}}[$__rate_interval]))`,
        stage,
      ]),
    }),
    timeseries({
      title: 'Memory',
      description: 'Resident memory of each process.',
      unit: 'bytes',
      targets: [[`process_resident_memory_bytes{${cluster}}`, '{{name}}']],
    }),
    table({
      title: 'Nodes',
      description: 'Every member, and its state.',
      targets: [[`switchyard_node_info{${cluster}}`]],
      hidden: ['name', 'role'],
    }),
  ],
});

import { cluster, dashboard, third, timeseries } from './panels.mjs';

const rate = (metric, by) => `sum by (${by}) (rate(switchyard_${metric}{${cluster}}[$__rate_interval]))`;

export const clients = dashboard({
  uid: 'switchyard-clients',
  title: 'Switchyard / Clients',
  description: 'What clients ask for, how it ends and how long it takes.',
  panels: [
    timeseries({
      title: 'Batches',
      description: 'Batches that ended a second, by outcome.',
      unit: 'short',
      targets: [[`sum by (outcome) (job_outcome:switchyard_batches:rate5m{${cluster}})`, '{{outcome}}']],
    }),
    timeseries({
      title: 'Time of a batch',
      description:
        'From its header to its summary: median and slowest of a hundred. A client that sends slowly takes its time here too.',
      unit: 's',
      targets: [0.5, 0.99].map((quantile) => [
        `histogram_quantile(${quantile}, sum by (le) (rate(switchyard_batch_seconds_bucket{${cluster}}[$__rate_interval])))`,
        `p${quantile * 100}`,
      ]),
    }),
    timeseries({
      title: 'Tokens',
      description: 'Tokens received a second, by router.',
      unit: 'short',
      width: third,
      targets: [[rate('tokens_total', 'name'), '{{name}}']],
    }),
    timeseries({
      title: 'Batches under way',
      description: 'By router.',
      unit: 'short',
      width: third,
      targets: [[`switchyard_batches_live{${cluster}}`, '{{name}}']],
    }),
    timeseries({
      title: 'Budget in use',
      description: 'Share of its byte budget that each router has reserved for chunks.',
      unit: 'percentunit',
      max: 1,
      width: third,
      targets: [
        [`switchyard_in_flight_bytes{${cluster}} / switchyard_in_flight_limit_bytes{${cluster}}`, '{{name}}'],
      ],
    }),
    timeseries({
      title: 'Chunks that wait for the budget',
      description: 'Their clients are not read on meanwhile.',
      unit: 'short',
      targets: [[`switchyard_in_flight_waiting{${cluster}}`, '{{name}}']],
    }),
    timeseries({
      title: 'NaN and infinity',
      description: 'Tokens a second that came, or were answered, with NaN or infinity.',
      unit: 'short',
      targets: [
        [rate('non_finite_tokens_total', 'job'), 'received'],
        [rate('non_finite_outputs_total', 'job'), 'answered'],
      ],
    }),
  ],
});

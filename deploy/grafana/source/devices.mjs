import { cluster, dashboard, third, timeseries } from './panels.mjs';

const rate = (metric, by) => `sum by (${by}) (rate(switchyard_${metric}{${cluster}}[$__rate_interval]))`;

export const devices = dashboard({
  uid: 'switchyard-devices',
  title: 'Switchyard / Devices',
  description:
    'What computes, how busy it is and what its memory holds. Panels of CUDA have data where workers have such devices.',
  panels: [
    timeseries({
      title: 'Computing',
      description: 'Share of time that the device of each worker computes.',
      unit: 'percentunit',
      max: 1,
      width: third,
      targets: [[`job_name:switchyard_compute_busy:ratio_rate5m{${cluster}}`, '{{name}}']],
    }),
    timeseries({
      title: 'Rows computed',
      description: 'Rows a second of each worker.',
      unit: 'short',
      width: third,
      targets: [[rate('computed_rows_total', 'name'), '{{name}}']],
    }),
    timeseries({
      title: 'Rows a second of computing',
      description: 'How fast each device is while it computes.',
      unit: 'short',
      width: third,
      targets: [
        [`${rate('computed_rows_total', 'name')} / ${rate('compute_seconds_total', 'name')}`, '{{name}}'],
      ],
    }),
    timeseries({
      title: 'Rows that wait',
      description: 'For experts of each worker.',
      unit: 'short',
      width: third,
      targets: [[`switchyard_queue_rows{${cluster}}`, '{{name}}']],
    }),
    timeseries({
      title: 'Queue',
      description:
        'From the arrival of a token batch to the start of its first segment: the slowest of a hundred, by worker.',
      unit: 's',
      width: third,
      targets: [
        [
          `histogram_quantile(0.99, sum by (name, le) (rate(switchyard_queue_seconds_bucket{${cluster}}[$__rate_interval])))`,
          '{{name}}',
        ],
      ],
    }),
    timeseries({
      title: 'Weights',
      description: 'Bytes of the experts that each worker holds.',
      unit: 'bytes',
      width: third,
      targets: [[`switchyard_expert_bytes{${cluster}}`, '{{name}}']],
    }),
    timeseries({
      title: 'Slabs',
      description: 'Share of its slab memory that each process uses.',
      unit: 'percentunit',
      max: 1,
      targets: [
        [
          `switchyard_slab_bytes{${cluster}, state="used"} / ignoring(state) switchyard_slab_limit_bytes{${cluster}}`,
          '{{name}}',
        ],
      ],
    }),
    timeseries({
      title: 'CUDA: memory',
      description: 'Share of the memory of each device that is in use, by all processes.',
      unit: 'percentunit',
      max: 1,
      targets: [
        [
          `switchyard_device_memory_used_bytes{${cluster}} / switchyard_device_memory_bytes{${cluster}}`,
          '{{name}}',
        ],
      ],
    }),
    timeseries({
      title: 'CUDA: streams',
      description: 'Share of time that each stream is at work: copies in, computing, copies out.',
      unit: 'percentunit',
      max: 1,
      targets: [
        [`rate(switchyard_device_stream_seconds_total{${cluster}}[$__rate_interval])`, '{{name}} {{stream}}'],
      ],
    }),
    timeseries({
      title: 'CUDA: utilisation',
      description: 'Share of the last second in which a kernel ran, as the driver tells it.',
      unit: 'percentunit',
      max: 1,
      targets: [[`switchyard_device_utilization_ratio{${cluster}}`, '{{name}}']],
    }),
  ],
});

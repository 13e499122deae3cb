import { cluster, dashboard, half, matrix, table, timeseries } from './panels.mjs';

export const links = dashboard({
  uid: 'switchyard-links',
  title: 'Switchyard / Links',
  description: 'What travels between routers and workers, by what, and whether it waits.',
  panels: [
    matrix({
      title: 'Traffic by router and worker',
      description: 'Bytes of rows a second, both ways together.',
      unit: 'Bps',
      expression: `sum by (name, worker) (job_name_worker:switchyard_link_bytes:rate5m{${cluster}})`,
      row: 'name',
      column: 'worker',
      height: 8,
    }),
    timeseries({
      title: 'Rows sent',
      description: 'Bytes a second from routers to each worker.',
      unit: 'Bps',
      targets: [
        [
          `sum by (worker) (job_name_worker:switchyard_link_bytes:rate5m{${cluster}, direction="sent"})`,
          '{{worker}}',
        ],
      ],
    }),
    timeseries({
      title: 'Rows returned',
      description: 'Bytes a second from each worker to routers.',
      unit: 'Bps',
      targets: [
        [
          `sum by (worker) (job_name_worker:switchyard_link_bytes:rate5m{${cluster}, direction="returned"})`,
          '{{worker}}',
        ],
      ],
    }),
    timeseries({
      title: 'Credit in use',
      description: 'Share of its credit that each link has outstanding.',
      unit: 'percentunit',
      max: 1,
      targets: [
        [
          `switchyard_link_outstanding_bytes{${cluster}} / switchyard_link_credit_bytes{${cluster}}`,
          '{{name}} → {{worker}}',
        ],
      ],
    }),
    timeseries({
      title: 'Token batches that wait for credit',
      description: 'On each link.',
      unit: 'short',
      targets: [[`switchyard_link_waiting{${cluster}}`, '{{name}} → {{worker}}']],
    }),
    timeseries({
      title: 'Exchange',
      description:
        'A token batch, from credit request to answer: the median and the slowest of a hundred, over all links.',
      unit: 's',
      width: half,
      targets: [0.5, 0.99].map((quantile) => [
        `histogram_quantile(${quantile}, sum by (le) (rate(switchyard_exchange_seconds_bucket{${cluster}}[$__rate_interval])))`,
        `p${quantile * 100}`,
      ]),
    }),
    timeseries({
      title: 'Transport',
      description: 'How fast the transport of each link is: 3 shared memory, 2 RDMA, 1 UCX over TCP, 0 gRPC.',
      unit: 'short',
      max: 3,
      width: half,
      targets: [[`job_name_worker:switchyard_link_transport:rank{${cluster}}`, '{{name}} → {{worker}}']],
    }),
    table({
      title: 'Links',
      description: 'What carries each link, and why.',
      targets: [[`switchyard_link_info{${cluster}}`]],
      hidden: ['role'],
    }),
  ],
});

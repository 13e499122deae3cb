import { native, type UcxStats } from '../../../native/index.js';
import { counter, type Registry } from '../../common/metrics.js';

/** What UCX did in this process, over all its channels; nothing if the addon was built without it. */
export function exportUcxMetrics(registry: Registry): void {
  const { ucx } = native;
  if (ucx === null) return;
  const read = (name: string, help: string, figures: (stats: UcxStats) => Record<string, number>) =>
    counter(registry, name, help, ['direction'] as const, (metric) => {
      metric.reset();
      for (const [direction, figure] of Object.entries(figures(ucx.stats())))
        metric.inc({ direction }, figure);
    });
  read('ucx_messages_total', 'Messages over UCX.', ({ messagesSent, messagesReceived }) => ({
    sent: messagesSent,
    received: messagesReceived,
  }));
  read(
    'ucx_bytes_total',
    'Bytes of messages over UCX, rows and metadata.',
    ({ bytesSent, bytesReceived }) => ({
      sent: bytesSent,
      received: bytesReceived,
    }),
  );
  const total = (name: string, help: string, figure: (stats: UcxStats) => number) =>
    counter(registry, name, help, [], (metric) => {
      metric.reset();
      metric.inc(figure(ucx.stats()));
    });
  total(
    'ucx_copied_bytes_total',
    'Bytes received over UCX that the processor copied into a slab, because the message was not zero-copy.',
    ({ bytesCopied }) => bytesCopied,
  );
  total(
    'ucx_streamed_bytes_total',
    'Bytes received in long messages over TCP, which the system put into a slab.',
    ({ bytesStreamed }) => bytesStreamed,
  );
  total(
    'ucx_refused_messages_total',
    'Messages over UCX that were dropped: no such channel, a wrong key, or not as announced.',
    ({ messagesRefused }) => messagesRefused,
  );
  total(
    'ucx_replaced_workers_total',
    'Workers of UCX that were replaced, because a peer that died left them blocked (with all their channels) or waiting for it.',
    ({ workersReplaced }) => workersReplaced,
  );
  total(
    'ucx_looked_seconds_total',
    'Seconds that the event loop looked for messages over UCX, where it could have slept; they are not among those that it was busy.',
    ({ lookedNanoseconds }) => lookedNanoseconds / 1e9,
  );
}

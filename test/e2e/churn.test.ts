import { expect, jest, test } from '@jest/globals';
import { formatChurn, runChurn } from '../../bench/churn.js';
import type { TransportKind } from '../../services/transport/link.js';

jest.setTimeout(300_000);

/** Links and clients alike, as Jest's configuration has it. */
declare const transport: TransportKind;

/** scripts/check-churn.mjs does it with 500 clients and 10,000 batches. */
test('clients that come and go, are stopped or are killed leave memory, descriptors and series as they were', async () => {
  const report = await runChurn({
    transport,
    clients: 4,
    processes: 1,
    batches: 160,
    stopped: 1,
    killed: 1,
    clientStallMs: 1_000,
    log: () => {},
  });
  const table = formatChurn(report);
  expect([report.failed, report.done]).toEqual([[], 160]);
  if (report.backAfterMs === null) throw new Error(table);
});

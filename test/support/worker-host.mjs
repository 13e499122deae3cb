/** A process that runs workers from dist/, one after another, as its parent tells it: the slabs of each are its own alone. */

import { workerSchema } from '../../dist/services/worker/config.js';
import { startWorker } from '../../dist/services/worker/main.js';

let worker = null;

async function obey({ start = null }) {
  if (start === null) {
    await worker?.stop('told to');
    worker = null;
    return {};
  }
  worker = await startWorker(workerSchema.parse(start));
  // One that ends by itself is missed in the cluster; the test says so.
  worker.stopped.catch(() => {});
  return { address: worker.address, metricsUrl: worker.metricsUrl };
}

process.on('message', (order) => {
  obey(order).then(
    (done) => process.send({ done }),
    (error) => process.send({ error: `${error.code}: ${error.message}` }),
  );
});
process.on('disconnect', () => process.exit(0));

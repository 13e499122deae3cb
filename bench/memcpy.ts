import { native } from '../native/index.js';

/** More than caches hold, as the rows of large batches are. */
const bytes = 256 * 1024 ** 2;

/** GB/s at which one core copies memory that no cache holds. */
export async function memcpyPastCaches(): Promise<number> {
  return (await native.measureMemcpy(bytes)) / 1e9;
}

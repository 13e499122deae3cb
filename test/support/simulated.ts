import { SimulatedProcess } from '../../services/simulator/process.js';
import type { SeededRandom } from '../../services/simulator/random.js';
import type { VirtualTime } from '../../services/simulator/virtual-time.js';

interface Setting {
  time: VirtualTime;
  random: SeededRandom;
  /** Its clock; true by default. */
  skew?: { rate: number; wallMs: number };
}

/** A process alone on a host of its name, whose operations take no time. */
export function simulatedProcess(
  name: string,
  { time, random, skew = { rate: 1, wallMs: 0 } }: Setting,
): SimulatedProcess {
  const costs = { operation: () => 0 };
  return new SimulatedProcess({ time, name, number: 1, host: name, skew, random, slabBytes: 1 << 20, costs });
}

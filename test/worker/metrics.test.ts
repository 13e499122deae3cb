import { describe, expect, test } from '@jest/globals';
import type { DeviceFigures } from '../../native/index.js';
import { describeDevice } from '../../services/cli/status.js';
import { createRegistry } from '../../services/common/metrics.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import { workerGauges } from '../../services/worker/metrics.js';

/** What a worker exports if its device tells this of itself. */
async function exposition(device: () => DeviceFigures | null): Promise<string> {
  const registry = createRegistry('worker', 'w0', nativeRuntime.usage);
  workerGauges(registry, {
    connected: () => true,
    rowsQueued: () => 0,
    bytesHeld: () => 0,
    loaded: () => ({ experts: 0, bytes: 0 }),
    arena: () => ({ bytesInUse: 0, bytesCached: 0, bytesLimit: 0 }),
    device,
  });
  return registry.metrics();
}

const figures: DeviceFigures = {
  copyInSeconds: 1.5,
  computeSeconds: 2.5,
  copyOutSeconds: 3.5,
  memoryUsedBytes: 5e9,
  memoryTotalBytes: 80e9,
  utilization: 0.75,
};

const series = (text: string) =>
  text.split('\n').filter((line) => line.startsWith('switchyard_device_') && !line.startsWith('#'));

describe('the metrics of a worker', () => {
  test('tell nothing of a device if that is the host', async () => {
    const text = await exposition(() => null);
    expect(text).toMatch(/^switchyard_queue_rows|switchyard_in_flight_bytes/m);
    expect(text).not.toContain('switchyard_device_');
  });

  test('tell the seconds of each stream, the memory and the utilisation of a device, as they are when read', async () => {
    let now = figures;
    const text = await exposition(() => now);
    const values = series(text).map((line) => [
      line.match(/stream="(\w+)"/)?.[1] ?? line.slice(0, line.indexOf('{')),
      Number(line.slice(line.lastIndexOf(' '))),
    ]);
    expect(Object.fromEntries(values)).toEqual({
      copy_in: 1.5,
      compute: 2.5,
      copy_out: 3.5,
      switchyard_device_memory_bytes: 80e9,
      switchyard_device_memory_used_bytes: 5e9,
      switchyard_device_utilization_ratio: 0.75,
    });
    now = { ...figures, computeSeconds: 9 };
    expect(await exposition(() => now)).toMatch(/stream="compute".*\} 9$/m);
  });

  test('leave the utilisation out where the driver does not tell it', async () => {
    const text = await exposition(() => ({ ...figures, utilization: null }));
    expect(series(text).some((line) => line.startsWith('switchyard_device_memory_bytes'))).toBe(true);
    expect(series(text).some((line) => line.startsWith('switchyard_device_utilization_ratio'))).toBe(false);
  });
});

describe('`switchyard status`', () => {
  test('shows memory, utilisation and streams of a device, and no utilisation where the driver does not tell it', () => {
    const { utilization, ...told } = figures;
    expect(describeDevice({ ...told, utilization: utilization! })).toBe(
      '(4.66 GiB of 74.5 GiB, 75.0 % busy, in 1.5 s, compute 2.5 s, out 3.5 s)',
    );
    expect(describeDevice(told)).toBe('(4.66 GiB of 74.5 GiB, in 1.5 s, compute 2.5 s, out 3.5 s)');
  });
});

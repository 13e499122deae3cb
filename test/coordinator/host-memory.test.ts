import { describe, expect, test } from '@jest/globals';
import { expertBytes, Scene, total } from './scene.js';

describe('memory that workers of a host share', () => {
  const beside = 1_000_000;
  const shared = (experts: number, own = beside) => ({
    memorySharedBytes: experts * expertBytes + 2 * beside,
    memoryBytes: experts * expertBytes + 2 * beside - own,
  });
  const shown = (scene: Scene) => scene.cluster.view.nodes!.map(({ memoryBytes }) => memoryBytes);

  test('is what all of them leave beside their slabs and themselves, in equal parts', () => {
    const scene = new Scene({ workers: 2 });
    scene.worker('w0', shared(total));
    expect(shown(scene)).toEqual([total * expertBytes + beside]);
    scene.worker('w1', shared(total));
    expect(shown(scene)).toEqual([(total / 2) * expertBytes, (total / 2) * expertBytes]);
    expect(scene.cluster.view.ready).toBe(true);
  });

  test('fits one expert less than it seems: the reason says so', () => {
    const scene = new Scene({ workers: 2 });
    scene.worker('w0', shared(total - 1));
    scene.worker('w1', shared(total - 1));
    expect(scene.cluster.view.ready).toBe(false);
    expect(scene.cluster.view.reason).toContain('fits on none of the 2 workers');
  });

  test('is not that of workers elsewhere, nor of those with memory of their own', () => {
    const scene = new Scene();
    scene.worker('w0', shared(total));
    scene.worker('w1', { ...shared(total), host: 'other' });
    scene.worker('w2', { memoryBytes: 5 });
    expect(shown(scene)).toEqual([total * expertBytes + beside, total * expertBytes + beside, 5]);
  });

  test('is nothing where slabs and processes take all of it', () => {
    const scene = new Scene();
    for (const name of ['w0', 'w1', 'w2']) scene.worker(name, { memorySharedBytes: 100, memoryBytes: 50 });
    expect(shown(scene)).toEqual([0, 0, 0]);
  });
});

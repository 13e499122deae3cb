import { describe, expect, test } from '@jest/globals';
import { indexPlacement, type PlacementIndex, withCopiesHeld } from '../../services/router/placement.js';

const workers = ['w0', 'w1', 'w2'];

/** `copies`: of each expert of layer 0, the workers. */
function placement(
  epoch: number,
  copies: number[][],
  known: PlacementIndex | null = null,
  term = 1,
): PlacementIndex {
  const layer = { layer: 0, copies: copies.map(({ length }) => length), workers: copies.flat() };
  return indexPlacement({ term, epoch }, { workers, layers: [layer] }, known);
}

const holders = ({ copies }: PlacementIndex) => {
  const { offsets, workers } = copies.get(0)!;
  return Array.from({ length: offsets.length - 1 }, (_, at) => [
    ...workers.subarray(offsets[at], offsets[at + 1]),
  ]);
};
const at = (nowMs: number, names: string[], untilMs = Number.NEGATIVE_INFINITY) => ({
  isReached: (worker: string) => names.includes(worker),
  nowMs,
  untilMs,
});
const reaches = (...names: string[]) => at(0, names);

describe('a placement that is taken', () => {
  const before = placement(1, [[0], [0], [1]]);
  const next = placement(2, [[1], [2], [2]], before);

  test('is the next one itself where all of it is reached, or nothing more was before', () => {
    expect(withCopiesHeld(next, before, reaches('w0', 'w1', 'w2'))).toBe(next);
    expect(withCopiesHeld(next, before, reaches())).toBe(next);
  });

  test('has copies of the one before beside its own for experts that are out of reach by it', () => {
    const taken = withCopiesHeld(next, before, reaches('w0', 'w1'));
    expect(holders(taken)).toEqual([[1], [0, 2], [1, 2]]);
    expect(taken).toMatchObject({
      epoch: 2,
      held: [
        { layer: 0, expert: 1, worker: 'w0', sinceMs: 0 },
        { layer: 0, expert: 2, worker: 'w1', sinceMs: 0 },
      ],
    });
    expect([...taken.expertsAt.get(0)!]).toEqual([1, 2, 2]);
  });

  test('goes on with those through placements that follow, until it reaches the experts by one of them', () => {
    const taken = withCopiesHeld(next, before, reaches('w0', 'w1'));
    const third = placement(3, [[1], [2], [0]], next);
    const later = withCopiesHeld(third, taken, reaches('w0', 'w1'));
    expect(holders(later)).toEqual([[1], [0, 2], [0]]);
    expect(later.held).toEqual([{ layer: 0, expert: 1, worker: 'w0', sinceMs: 0 }]);
    expect(withCopiesHeld(third, later, reaches('w0', 'w1', 'w2'))).toBe(third);
  });

  test('gives up each copy by the time since when it alone is held', () => {
    const names = ['w0', 'w1'];
    const early = withCopiesHeld(placement(2, [[0], [2], [1]], before), before, at(1_000, names));
    const later = withCopiesHeld(next, early, at(5_000, names));
    expect(later.held).toMatchObject([
      { expert: 1, sinceMs: 1_000 },
      { expert: 2, sinceMs: 5_000 },
    ]);
    const last = withCopiesHeld(next, later, at(6_000, names, 1_000));
    expect(holders(last)).toEqual([[1], [2], [1, 2]]);
    expect(withCopiesHeld(next, last, at(9_000, names, 5_000))).toBe(next);
  });

  test('has none of them at workers that are reached no more, of experts that nobody has any more, or of another term', () => {
    expect(withCopiesHeld(next, before, reaches('w1')).held).toMatchObject([{ expert: 2, worker: 'w1' }]);
    const empty = placement(2, [[1], [], [2]], before);
    expect(holders(withCopiesHeld(empty, before, reaches('w0', 'w1')))).toEqual([[1], [], [1, 2]]);
    const other = placement(1, [[1], [2], [2]], before, 2);
    expect(withCopiesHeld(other, before, reaches('w0', 'w1'))).toBe(other);
  });
});

import { describe, expect, test } from '@jest/globals';
import { eplb } from '../../bench/peers/eplb.js';

describe('EPLB as a peer', () => {
  test.each([
    {
      loads: [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
      gpus: [
        [5, 6],
        [5, 7],
        [8, 4],
        [3, 4],
        [10, 9],
        [10, 2],
        [0, 1],
        [11, 1],
      ],
    },
    {
      loads: [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
      gpus: [
        [7, 10],
        [6, 8],
        [6, 11],
        [8, 9],
        [2, 4],
        [5, 1],
        [5, 0],
        [3, 1],
      ],
    },
  ])('places as its authors show it', ({ loads, gpus }) => {
    const placed = gpus.map((): number[] => []);
    const shape = { replicas: 16, groups: 4, nodes: 2, gpus: 8 };
    for (const [expert, copies] of eplb(Float64Array.from(loads), shape).entries())
      for (const gpu of copies) placed[gpu]!.push(expert);
    expect(placed).toEqual(gpus.map((experts) => [...experts].sort((a, b) => a - b)));
  });
});

import { setImmediate } from 'node:timers/promises';
import { getHeapSpaceStatistics } from 'node:v8';
import { describe, expect, test } from '@jest/globals';
import { LiveList, LiveMap, LiveSet } from '../../services/common/live.js';

describe('a LiveMap', () => {
  test('is a map', () => {
    const map = new LiveMap<string, number>();
    map.set('a', 1);
    map.set('b', 2);
    map.set('a', 3);
    expect([map.size, map.get('a'), map.get('c'), map.has('b'), map.has('c')]).toEqual([
      2,
      3,
      undefined,
      true,
      false,
    ]);
    expect(map.values()).toEqual([2, 3]);
    expect([map.delete('b'), map.delete('b')]).toEqual([true, false]);
    expect(map.values()).toEqual([3]);
    map.clear();
    expect([map.size, map.get('a')]).toEqual([0, undefined]);
  });
});

describe('a LiveSet', () => {
  test('has what came, in order, and not what has left', () => {
    const set = new LiveSet<string>();
    for (const item of ['a', 'b', 'c', 'd']) set.add(item);
    expect([set.delete('a'), set.delete('c'), set.delete('c')]).toEqual([true, true, false]);
    expect([set.size, set.first, set.values()]).toEqual([2, 'b', ['b', 'd']]);
    set.clear();
    expect([set.size, set.first]).toEqual([0, undefined]);
  });
});

describe('a LiveList', () => {
  test('has what came, in order, and not what has left', () => {
    const list = new LiveList<string>();
    const [, second, , fourth] = ['a', 'b', 'b', 'd'].map((item) => list.add(item));
    second!();
    second!();
    expect([list.size, list.first, list.values()]).toEqual([3, 'a', ['a', 'b', 'd']]);
    fourth!();
    list.add('e');
    expect([list.shift(), list.shift(), list.first, list.size]).toEqual(['a', 'b', 'e', 1]);
    expect([list.shift(), list.shift(), list.first, list.size]).toEqual(['e', undefined, undefined, 0]);
    list.add('f');
    expect(list.values()).toEqual(['f']);
  });
});

/** Bytes of the old generation. */
const oldBytes = () =>
  getHeapSpaceStatistics().reduce(
    (sum, { space_name: name, space_used_size: bytes }) => sum + (name === 'old_space' ? bytes : 0),
    0,
  );

test('what has left goes to no old generation, however many come and go', async () => {
  const payload = () => ({ words: new Array(1_000).fill(0) });
  const map = new LiveMap<number, object>();
  const set = new LiveSet<object>();
  const list = new LiveList<object>();
  const inSet: object[] = [];
  const inList: (() => void)[] = [];
  const before = oldBytes();
  let most = 0;
  for (let number = 0; number < 100_000; number += 1) {
    const [one, other, third] = [payload(), payload(), payload()];
    map.set(number, one);
    map.delete(number - 8);
    set.add(other);
    inSet.push(other);
    if (inSet.length > 8) set.delete(inSet.shift()!);
    inList.push(list.add(third));
    if (inList.length > 8) inList.shift()!();
    if (number % 1_000 !== 0) continue;
    most = Math.max(most, oldBytes() - before);
    await setImmediate();
  }
  // All of it would be 2.4 GB, of which a Map and a Set leave some hundred MB until they are collected.
  expect(most).toBeLessThan(32e6);
});

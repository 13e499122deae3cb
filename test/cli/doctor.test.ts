import { describe, expect, test } from '@jest/globals';
import { hugePages } from '../../services/cli/doctor.js';

const directory = '/sys/kernel/mm/transparent_hugepage';

describe('huge pages', () => {
  const system = {
    enabled: 'always [madvise] never\n',
    sizeEnabled: 'always [inherit] madvise never\n',
    status: 'Name:\tnode\nTHP_enabled:\t1\n',
    memory: 'HugePages_Total:      12\nHugePages_Free:       12\n',
  };

  test.each([
    ['madvise', {}],
    ['always', { enabled: '[always] madvise never', sizeEnabled: '' }],
    ['madvise', { enabled: 'always madvise [never]', sizeEnabled: 'always inherit [madvise] never' }],
  ])('hold weights if memory got them: %s', (setting, other) => {
    expect(hugePages(1, { ...system, ...other })).toEqual({
      name: 'huge pages',
      state: 'ok',
      detail: `transparent: ${setting}: expert weights lie in them; 12 reserved`,
    });
  });

  test.each([
    ['the size inherits', `${directory}/enabled`, { enabled: 'always madvise [never]' }],
    ['sizes have no setting', `${directory}/enabled`, { enabled: 'always madvise [never]', sizeEnabled: '' }],
    [
      'the size has its own',
      `${directory}/hugepages-2048kB/enabled`,
      { sizeEnabled: 'always inherit madvise [never]' },
    ],
  ])('are missing by the setting that decides: %s', (_, path, other) => {
    expect(hugePages(0, { ...system, ...other })).toEqual({
      name: 'huge pages',
      state: 'absent',
      detail:
        'transparent: never: expert weights lie in pages of 4 KiB, which takes time where a batch has few rows ' +
        `(echo madvise > ${path}); 12 reserved`,
    });
  });

  test('may be allowed, and yet none or too few there', () => {
    const compact = '(memory is fragmented: echo 1 > /proc/sys/vm/compact_memory)';
    for (const [share, where] of [
      [0, 'lie in'],
      [0.5, 'lie partly in'],
    ] as const) {
      const { state, detail } = hugePages(share, system);
      expect(state).toBe('absent');
      expect(detail).toContain(`transparent: madvise: expert weights ${where} pages of 4 KiB`);
      expect(detail).toContain(compact);
    }
  });

  test('may be forbidden to a process, or unknown to a system', () => {
    expect(hugePages(0, { ...system, status: 'THP_enabled:\t0\n' })).toMatchObject({
      state: 'absent',
      detail: expect.stringContaining('(not for this process)'),
    });
    expect(hugePages(0, { enabled: '', sizeEnabled: '', status: '', memory: '' })).toMatchObject({
      state: 'absent',
      detail: expect.stringMatching(/^transparent: unknown: .*; 0 reserved$/),
    });
  });
});

import { describe, expect, test } from '@jest/globals';
import { hugePages } from '../../services/cli/doctor.js';

describe('huge pages', () => {
  const status = (given: number) => `Name:\tnode\nTHP_enabled:\t${given}\n`;
  const memory = 'HugePages_Total:      12\nHugePages_Free:       12\n';

  test.each(['always [madvise] never', '[always] madvise never'])(
    'are said to hold weights: %s',
    (enabled) => {
      const { state, detail } = hugePages(enabled, status(1), memory);
      expect(state).toBe('ok');
      expect(detail).toMatch(/^transparent: (madvise|always): expert weights lie in them; 12 reserved$/);
    },
  );

  test('are said to be missing, and what gives them', () => {
    const { state, detail } = hugePages('always madvise [never]', status(1), memory);
    expect(state).toBe('absent');
    expect(detail).toMatch(
      /pages of 4 KiB.*\(echo madvise > \/sys\/kernel\/mm\/transparent_hugepage\/enabled\)/,
    );
  });

  test('may be forbidden to a process, or unknown to a system', () => {
    expect(hugePages('always [madvise] never', status(0), memory)).toMatchObject({
      state: 'absent',
      detail: expect.stringContaining('(not for this process)'),
    });
    expect(hugePages('', '', '')).toMatchObject({
      state: 'absent',
      detail: expect.stringMatching(/^transparent: unknown: .*; 0 reserved$/),
    });
  });
});

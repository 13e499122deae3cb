import { describe, expect, test } from '@jest/globals';
import { bearerCheck } from '../../services/common/access.js';

describe('an authorization header', () => {
  const allows = bearerCheck('secret');

  test.each([
    'Bearer secret',
    'bearer secret',
    'BEARER secret',
    'Bearer  secret',
    'bearer secret  ',
    ' Bearer secret',
  ])('%j carries the token', (header) => {
    expect(allows(header)).toBe(true);
  });

  test.each([
    'secret',
    'Bearer',
    'Bearer ',
    'Bearersecret',
    'Bearer Secret',
    'Bearer secret secret',
    'Bearer secret,',
    'Basic secret',
    'xBearer secret',
    '',
    undefined,
    ['Bearer secret'],
  ])('%j does not', (header) => {
    expect(allows(header)).toBe(false);
  });
});

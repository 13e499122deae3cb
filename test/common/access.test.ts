import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import {
  Access,
  accessRoles,
  assertBindAllowed,
  readToken,
  readTokens,
} from '../../services/common/access.js';
import type { SwitchyardError } from '../../services/common/errors.js';

function codeOf(act: () => void): string {
  try {
    act();
  } catch (error) {
    return (error as SwitchyardError).code;
  }
  return 'OK';
}

describe('an authorization header', () => {
  const access = new Access({ operator: 'secret' });
  const allows = (header: unknown) => codeOf(() => access.check('/state', header)) === 'OK';

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

describe('a token', () => {
  const tokens = { client: 'client-secret', node: 'node-secret', operator: 'operator-secret' };
  const access = new Access(tokens);
  const bearer = (role: (typeof accessRoles)[number]) => `Bearer ${tokens[role]}`;

  test.each([
    ['/switchyard.v1.Inference/Forward', ['client', 'operator']],
    ['/switchyard.v1.Inference/WhatComesLater', ['client', 'operator']],
    ['/switchyard.v1.Coordinator/Join', ['node']],
    ['/switchyard.v1.Experts/Exchange', []],
    ['/switchyard.v2.Another/Method', ['operator']],
    ['/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', ['operator']],
    ['/metrics', ['operator']],
    ['/state', ['operator']],
    ['/grpc.health.v1.Health/Watch', ['client', 'node', 'operator']],
    ['/readyz', ['client', 'node', 'operator']],
  ])('%s is for %j', (path, allowed) => {
    for (const role of accessRoles) {
      const code = codeOf(() => access.check(path, bearer(role)));
      expect([role, code]).toEqual([role, allowed.includes(role) ? 'OK' : 'PERMISSION_DENIED']);
    }
    const open = allowed.length === accessRoles.length;
    for (const header of [undefined, 'Bearer guess'])
      expect(codeOf(() => access.check(path, header))).toBe(open ? 'OK' : 'UNAUTHENTICATED');
  });

  test('of one role does not open what is for another that has none', () => {
    const some = new Access({ operator: 'secret' });
    expect(codeOf(() => some.check('/switchyard.v1.Inference/Forward', undefined))).toBe('OK');
    expect(codeOf(() => some.check('/switchyard.v1.Experts/Exchange', 'Bearer secret'))).toBe(
      'PERMISSION_DENIED',
    );
    expect(codeOf(() => some.check('/state', undefined))).toBe('UNAUTHENTICATED');
  });

  test('is never in an error', () => {
    for (const role of accessRoles) {
      try {
        access.check('/switchyard.v1.Experts/Exchange', bearer(role));
      } catch (error) {
        const { message, details } = error as SwitchyardError;
        expect(message + JSON.stringify(details)).not.toContain('secret');
      }
    }
  });

  test('of two roles is refused, and not shown', () => {
    const act = () => readTokens({ clientToken: 'same', nodeToken: 'other', operatorToken: 'same' });
    expect(act).toThrow(
      /operatorToken is \(hidden\), which is the client token too; allowed: a token of its own/,
    );
    expect(codeOf(act)).toBe('CONFIG_INVALID');
    expect(readTokens({ clientToken: 'one' })).toEqual({ client: 'one', node: null, operator: null });
  });

  test.each([
    [{}, ['/switchyard.v1.Inference/Forward'], 'no client token', '--client-token-file'],
    [{ client: 'c' }, ['/metrics'], 'no operator token', '--operator-token-file'],
    [
      { operator: 'o' },
      ['/metrics', '/switchyard.v1.Coordinator/Join', '/switchyard.v1.Inference/Forward'],
      'no client, no node token',
      '--client-token-file and --node-token-file',
    ],
  ])('is demanded of a server that others reach: with %j for %j', (given, paths, missing, files) => {
    const bind = (host: string, insecure = false) =>
      codeOf(() => assertBindAllowed(host, new Access(given), insecure, paths));
    expect(() => assertBindAllowed('0.0.0.0', new Access(given), false, paths)).toThrow(
      `there is ${missing}; allowed: a loopback address, or ${files}, or --tls-client-ca, or --insecure`,
    );
    expect(bind('0.0.0.0')).toBe('CONFIG_INVALID');
    expect(bind('127.0.0.1')).toBe('OK');
    expect(bind('0.0.0.0', true)).toBe('OK');
  });

  test('is not demanded by what nobody calls with one', () => {
    const paths = ['/switchyard.v1.Experts/Exchange', '/healthz', '/metrics'];
    expect(codeOf(() => assertBindAllowed('0.0.0.0', new Access({ operator: 'o' }), false, paths))).toBe(
      'OK',
    );
  });
});

describe('a file of a token', () => {
  test('has at most 4096 characters in its word, and blanks around', () => {
    const directory = mkdtempSync(join(tmpdir(), 'switchyard-access-'));
    const tokenFile = join(directory, 'token');
    try {
      writeFileSync(tokenFile, ` ${'x'.repeat(4096)}\n`);
      expect(readToken({ token: null, tokenFile })).toBe('x'.repeat(4096));
      writeFileSync(tokenFile, 'x'.repeat(4097));
      expect(() => readToken({ token: null, tokenFile })).toThrow(
        `tokenFile is "${tokenFile}": its token has 4097 characters; allowed: a readable file with one word of printable ASCII, at most 4096 characters`,
      );
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  test('without an end is not read to it', () => {
    expect(() => readTokens({ nodeTokenFile: '/dev/zero' })).toThrow(
      'nodeTokenFile is "/dev/zero": it has more than 65536 bytes; allowed: ',
    );
  });
});

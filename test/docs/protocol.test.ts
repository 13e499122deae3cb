import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { describe, expect, test } from '@jest/globals';
import { packageRoot } from '../../native/locate.js';
import { isErrorCode, SwitchyardError } from '../../services/common/errors.js';

const read = (path: string) => readFileSync(join(packageRoot(), path), 'utf8');

/** Code and gRPC status of every row of the error table. */
const documented = [...read('docs/PROTOCOL.md').matchAll(/^\| `([A-Z_]+)` \| ([A-Z_]+) \| \S/gm)].map(
  ([, code, name]) => ({ code: code!, name: name! }),
);

/** The table itself is not exported, so its codes are read from the source. */
const codes = [...read('services/common/errors.ts').matchAll(/^ {2}([A-Z_]+): status\./gm)].map(
  ([, code]) => code!,
);

describe('the error table of PROTOCOL.md', () => {
  test('lists every code of errors.ts once, and no other', () => {
    expect(codes.length).toBeGreaterThan(10);
    expect(documented.map(({ code }) => code).sort()).toEqual([...codes].sort());
  });

  test.each(documented)('gives $code the gRPC status that it travels as', ({ code, name }) => {
    if (!isErrorCode(code)) throw new Error(`${code} is not a code`);
    expect(status[new SwitchyardError(code, '').grpcStatus]).toBe(name);
  });
});

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

test('the service that PROTOCOL.md shows has every method of the protocol', () => {
  const methods = (text: string) => [...text.matchAll(/^ {2}rpc (\w+) ?\(/gm)].map(([, name]) => name).sort();
  const defined = methods(read('proto/switchyard/v1/client.proto'));
  expect(defined.length).toBeGreaterThan(3);
  expect(methods(read('docs/PROTOCOL.md'))).toEqual(defined);
});

describe('the wire form of UCX messages in PROTOCOL.md', () => {
  const page = read('docs/PROTOCOL.md');
  const wire = read('native/src/ucx/wire.h');
  const bytesOf: Readonly<Record<string, number>> = { uint32_t: 4, Kind: 4, uint64_t: 8, Key: 16 };

  test('has the size and the magic of the header', () => {
    const size = /static_assert\(sizeof\(WireHeader\) == (\d+)\)/.exec(wire)![1];
    const magic = /expected_magic = (0x[0-9a-f]+)/.exec(wire)![1];
    expect(page).toContain(`with a header of ${size} bytes, little-endian`);
    expect(page).toContain(`\`${magic}\``);
  });

  test('lists the fields of the header at their offsets', () => {
    const body = wire.slice(wire.indexOf('struct WireHeader'), wire.indexOf('static_assert'));
    let offset = 0;
    const fields = [...body.matchAll(/^ {2}(uint32_t|uint64_t|Kind|Key) (\w+)(?: = [^;]+|\{\});/gm)].map(
      ([, type, name]) => {
        const row = `${name} ${offset}`;
        offset += bytesOf[type!]!;
        return row;
      },
    );
    expect(offset).toBe(56);
    const shown = [...page.matchAll(/^\| `(\w+)` \| (\d+) \| (?:u32|u64|16 bytes) \|/gm)];
    expect(shown.map(([, name, at]) => `${name} ${at}`)).toEqual(fields);
  });

  test('lists every kind of message', () => {
    const body = wire.slice(wire.indexOf('enum class Kind'), wire.indexOf('using Mark'));
    const kinds = [...body.matchAll(/^ {2}(\w+) = (\d+),/gm)].map(([, name, number]) => `${number} ${name}`);
    const shown = [...page.matchAll(/^\| (\d+) \| `(\w+)` \|/gm)];
    expect(shown.map(([, number, name]) => `${number} ${name}`)).toEqual(kinds);
  });
});

describe('the fixed numbers of PROTOCOL.md', () => {
  const units: Readonly<Record<string, number>> = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, ms: 1, s: 1000, '': 1 };
  const rows = [
    ...read('docs/PROTOCOL.md').matchAll(/^\| ([^|]+) \| (\d+) ?(\w*) \| `([\w/.-]+)`: `(\w+)` \|$/gm),
  ].map(([, what, value, unit, path, name]) => ({
    what: what!,
    shown: Number(value) * units[unit!]!,
    path: path!,
    name: name!,
  }));

  /** A constant that is a number, a product or a power of numbers. */
  function constantOf(path: string, name: string): number {
    const found = new RegExp(`\\b${name} = ([\\d_ *]+);`).exec(read(path));
    if (found === null) throw new Error(`${path} has no constant ${name}`);
    const number = (text: string) => Number(text.replaceAll('_', ''));
    const factors = found[1]!.replaceAll('**', '^').split('*');
    return factors
      .map((factor) => factor.split('^').map(number))
      .reduce((product, [base, exponent = 1]) => product * base! ** exponent, 1);
  }

  test('are many', () => expect(rows.length).toBeGreaterThan(20));

  test.each(rows)('$what: $name', ({ shown, path, name }) => {
    expect(constantOf(path, name)).toBe(shown);
  });
});

import type { IncomingHttpHeaders } from 'node:http2';
import { Metadata, status } from '@grpc/grpc-js';
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { type ErrorCode, SwitchyardError } from '../../services/common/errors.js';
import { fromServiceError, isWrongRole, toServiceError } from '../../services/common/status.js';

const codes: ErrorCode[] = [
  'INVALID_ARGUMENT',
  'WORKER_LOST',
  'TOO_LARGE',
  'EXPERT_NOT_HERE',
  'DATA_LOSS',
  'INTERNAL',
];

describe('an error that goes through a gRPC status', () => {
  test('comes back with its code, message and details, whatever text they hold', () => {
    const text = fc.string({ unit: 'binary', maxLength: 60 });
    const value = fc.oneof(text, fc.integer(), fc.boolean(), fc.constant(null));
    // Names such as __proto__ are no names of details.
    const details = fc.dictionary(fc.stringMatching(/^[a-z]{1,10}$/), value, { noNullPrototype: true });
    fc.assert(
      fc.property(fc.constantFrom(...codes), text, details, (code, message, given) => {
        const sent = toServiceError(new SwitchyardError(code, message, given));
        // What the wire does to it: the message is percent-encoded, trailers are header values.
        const details = decodeURI(encodeURI(sent.details ?? ''));
        const metadata = Metadata.fromHttp2Headers(sent.metadata!.toHttp2Headers() as IncomingHttpHeaders);
        const back = fromServiceError({ code: sent.code, details, metadata, message: 'x' });
        expect(back.code).toBe(code);
        expect(back.grpcStatus).toBe(sent.code);
        // Lone surrogates cannot be encoded.
        if (Buffer.from(message).toString() === message)
          expect(back.message).toBe(message || `gRPC status ${sent.code}`);
        expect(back.details).toEqual(given);
      }),
    );
  });

  test('is cut to what fits into a header block', () => {
    const sent = toServiceError(new SwitchyardError('INTERNAL', 'x'.repeat(1e6), { field: 'y'.repeat(1e6) }));
    expect(sent.details!.length).toBeLessThan(5000);
    expect(sent.metadata!.get('switchyard-details')).toEqual([]);
    expect(sent.metadata!.get('switchyard-code')).toEqual(['INTERNAL']);
  });

  test.each(['constructor', 'toString', '__proto__'])('has no code that every object has: %s', (code) => {
    expect(toServiceError(Object.assign(new Error('x'), { code }))).toMatchObject({ code: status.INTERNAL });
    const metadata = new Metadata();
    metadata.set('switchyard-code', code);
    const back = fromServiceError({ code: status.UNAVAILABLE, details: 'gone', metadata, message: 'x' });
    expect(back.grpcStatus).toBe(status.UNAVAILABLE);
  });

  test('keeps the code of an error of the addon', () => {
    expect(toServiceError(Object.assign(new Error('no memory'), { code: 'RESOURCE_EXHAUSTED' })).code).toBe(
      status.RESOURCE_EXHAUSTED,
    );
  });
});

describe('a status of gRPC itself', () => {
  test.each([
    [status.UNAVAILABLE, 'No connection established', 'LINK_LOST'],
    [status.DEADLINE_EXCEEDED, 'Deadline exceeded', 'DEADLINE_EXCEEDED'],
    [status.CANCELLED, 'Call cancelled', 'CANCELLED'],
    [status.RESOURCE_EXHAUSTED, 'Received message larger than max (9 vs 8)', 'TOO_LARGE'],
    [status.RESOURCE_EXHAUSTED, 'Bandwidth exhausted', 'RESOURCE_EXHAUSTED'],
    [status.UNIMPLEMENTED, 'no such method', 'LINK_LOST'],
  ])('%d %s becomes %s %s', (code, details, expected) => {
    const error = fromServiceError({ code, details, metadata: new Metadata() });
    expect(error.code).toBe(expected);
    expect(error.message).toContain(details);
    if (expected === 'TOO_LARGE') expect(error.details).toMatchObject({ setting: 'messageBytesMax' });
  });

  test.each([
    ['Error: connect ECONNREFUSED ::1:70', 'connect ECONNREFUSED ::1:70'],
    ['connect ETIMEDOUT 10.0.0.1:70 (2026-01-02T03:04:05.678Z)', 'connect ETIMEDOUT 10.0.0.1:70'],
    [
      'Failed to connect (2026-01-02T03:04:05.678Z)',
      'the server ended the connection without a word; it may want TLS (tlsCa; for etcd, etcdCa)',
    ],
    [
      'Protocol error (2026-01-02T03:04:05.678Z)',
      'what listens there does not speak gRPC; it may be a metrics port',
    ],
  ])('that has no connection tells why, and no more: %s', (reason, message) => {
    const details = `No connection established. Last error: ${reason}. Resolution note: `;
    const error = fromServiceError({ code: status.UNAVAILABLE, details, metadata: new Metadata() });
    expect(error).toMatchObject({ code: 'LINK_LOST', message });
  });

  test.each([
    ['Operator/MarkWorker', 'a coordinator'],
    ['Inference/WatchCluster', 'a coordinator or a router'],
    ['Experts/Exchange', 'a worker'],
  ])('of a server without %s tells that %s is wanted', (method, wanted) => {
    const details = `The server does not implement the method /switchyard.v1.${method}`;
    const error = fromServiceError({ code: status.UNIMPLEMENTED, details, metadata: new Metadata() });
    expect(isWrongRole(error)).toBe(true);
    expect(error).toMatchObject({
      code: 'LINK_LOST',
      message: `what listens there does not do this: ${details}; allowed: the address of ${wanted}`,
    });
  });

  test('with trailers that are no details of ours is read all the same', () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[ -~]{0,40}$/), fc.stringMatching(/^[ -~]{0,40}$/), (code, details) => {
        const metadata = new Metadata();
        metadata.set('switchyard-code', code);
        metadata.set('switchyard-details', details);
        expect(fromServiceError({ code: status.INTERNAL, details: 'x', metadata })).toBeInstanceOf(
          SwitchyardError,
        );
      }),
    );
  });
});

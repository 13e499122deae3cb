import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { services } from '../../services/common/protocol.js';

/** What gRPC does with a serialized message: it asks for the length and copies it behind five bytes. */
function wire(message: Buffer): Buffer {
  const framed = Buffer.alloc(message.length + 5);
  message.copy(framed, 5);
  return framed.subarray(5);
}

const rows = fc.oneof(
  fc.uint8Array({ maxLength: 40 }),
  // Lengths around those at which a varint grows.
  fc.constantFrom(126, 127, 128, 16_383, 16_384, 2 ** 21).map((length) => new Uint8Array(length).fill(7)),
);
const packed = fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes));

describe('a message whose rows are placed, not copied', () => {
  test('is read by protobuf as a token batch', () => {
    const { Exchange } = services.Experts;
    fc.assert(
      fc.property(
        rows,
        packed,
        fc.string(),
        fc.integer({ min: 0, max: 2 ** 32 - 1 }),
        (bytes, rowIndices, batchId, layer) => {
          const meta = { exchange: 2 ** 40, batchId, layer, rowIndices, combine: 'PARTIAL' as const };
          const sent = wire(Exchange.requestSerialize({ tokens: { meta, rows: bytes } }));
          const { kind, tokens } = Exchange.requestDeserialize(sent);
          expect(kind).toBe('tokens');
          expect(tokens!.meta).toMatchObject({ exchange: 2 ** 40, batchId, layer, combine: 'PARTIAL' });
          expect(tokens!.meta!.rowIndices.equals(rowIndices)).toBe(true);
          expect(tokens!.rows.equals(bytes)).toBe(true);
        },
      ),
    );
  });

  test('is read by protobuf as a result, a request chunk and an answer chunk', () => {
    const { Exchange } = services.Experts;
    const { Forward } = services.Inference;
    fc.assert(
      fc.property(rows, packed, (bytes, experts) => {
        const meta = { exchange: 3, rows: 4, computeSeconds: 0.5, queueSeconds: 0 };
        const result = Exchange.responseDeserialize(
          wire(Exchange.responseSerialize({ result: { meta, rows: bytes } })),
        );
        expect(result.result!.meta).toEqual(meta);
        expect(result.result!.rows.equals(bytes)).toBe(true);

        const chunk = { offset: 5, experts, weights: experts, rows: bytes };
        const request = Forward.requestDeserialize(wire(Forward.requestSerialize({ chunk })));
        const answer = Forward.responseDeserialize(wire(Forward.responseSerialize({ chunk })));
        for (const read of [request.chunk!, answer.chunk!]) {
          expect(read.offset).toBe(5);
          expect(read.experts.equals(experts)).toBe(true);
          expect(read.rows.equals(bytes)).toBe(true);
        }
      }),
    );
  });

  test('leaves messages without rows to protobuf', () => {
    const { Forward } = services.Inference;
    const header = { batchId: 'b', sequences: 2, length: 3, hidden: 4 };
    expect(Forward.requestDeserialize(wire(Forward.requestSerialize({ header })))).toMatchObject({
      kind: 'header',
      header,
    });
    expect(
      Forward.requestDeserialize(wire(Forward.requestSerialize({ chunk: { offset: 1 } }))).chunk,
    ).toMatchObject({
      offset: 1,
    });
  });

  test('does not touch the message it was given', () => {
    const chunk = { offset: 1, rows: Buffer.from('abcd') };
    services.Inference.Forward.requestSerialize({ chunk });
    expect(chunk.rows.toString()).toBe('abcd');
  });
});

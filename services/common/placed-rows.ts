/**
 * Serializes the messages that carry rows without a copy of the rows. protobuf code would copy them into
 * the message, and gRPC copies the message behind its frame header; here only the latter copy is made.
 *
 * All four have one form: a oneof whose member `kind` is a message with the bytes field `rows`. The generic
 * serializer writes the message without its rows; the length of the member is then corrected, and the rows
 * field follows as the last of the member, as any protobuf parser accepts it.
 */

interface RowsMember {
  rows?: unknown;
}

const lengthDelimited = 2;

function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest > 0x7f; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80);
  bytes.push(rest);
  return bytes;
}

/** The part of Buffer that grpc-js uses of a serialized message: its length, and one copy behind the frame header. */
class PlacedMessage {
  readonly length: number;

  constructor(
    private readonly head: Uint8Array,
    private readonly rows: Uint8Array,
  ) {
    this.length = head.byteLength + rows.byteLength;
  }

  get byteLength(): number {
    return this.length;
  }

  copy(target: Uint8Array, targetStart = 0): number {
    target.set(this.head, targetStart);
    target.set(this.rows, targetStart + this.head.byteLength);
    return this.length;
  }
}

/** A serializer like `serialize`, whose messages `kind` keep their rows where they are. `rowsField`: its number. */
export function placeRows<Message extends object>(
  serialize: (message: Message) => Buffer,
  kind: string,
  rowsField: number,
): (message: Message) => Buffer {
  return (message) => {
    const member = (message as Record<string, RowsMember | null | undefined>)[kind];
    const rows = member?.rows;
    if (!(rows instanceof Uint8Array)) return serialize(message);
    const { rows: _, ...rest } = member as RowsMember;
    const bare = serialize({ ...message, [kind]: rest });
    let start = 1;
    while (bare[start]! >= 0x80) start++;
    const inner = bare.subarray(start + 1);
    const rowsHead = [(rowsField << 3) | lengthDelimited, ...varint(rows.byteLength)];
    const length = varint(inner.byteLength + rowsHead.length + rows.byteLength);
    const head = Buffer.concat([
      bare.subarray(0, 1),
      Uint8Array.from(length),
      inner,
      Uint8Array.from(rowsHead),
    ]);
    return new PlacedMessage(head, rows) as unknown as Buffer;
  };
}

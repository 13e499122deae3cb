/**
 * Serializes the messages that carry rows without a copy of the rows. protobuf code would copy them into
 * the message, and gRPC copies the message behind its frame header; here only the latter copy is made.
 *
 * The generic serializer writes the message without its rows; where they are in a member of it, the length of the member is then
 * corrected; and the rows follow as the last field, as any protobuf parser accepts it.
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

/** Head and bytes of a bytes field. */
function bytesField(field: number, bytes: Uint8Array): Uint8Array[] {
  return [Uint8Array.from([(field << 3) | lengthDelimited, ...varint(bytes.byteLength)]), bytes];
}

function lengthOf(parts: readonly Uint8Array[]): number {
  return parts.reduce((length, part) => length + part.byteLength, 0);
}

/** A message with one member and nothing else, as `bare` has it, which `more` fields follow in the member. */
function extendMember(bare: Buffer, more: readonly Uint8Array[]): Uint8Array[] {
  let start = 1;
  while (bare[start]! >= 0x80) start++;
  const inner = bare.subarray(start + 1);
  const length = Uint8Array.from(varint(inner.byteLength + lengthOf(more)));
  return [Buffer.concat([bare.subarray(0, 1), length, inner]), ...more];
}

/** The part of Buffer that grpc-js uses of a serialized message: its length, and one copy behind the frame header. */
class PlacedMessage {
  readonly length: number;

  constructor(private readonly parts: readonly Uint8Array[]) {
    this.length = lengthOf(parts);
  }

  get byteLength(): number {
    return this.length;
  }

  copy(target: Uint8Array, targetStart = 0): number {
    let start = targetStart;
    for (const part of this.parts) {
      target.set(part, start);
      start += part.byteLength;
    }
    return this.length;
  }
}

/**
 * A serializer like `serialize`, of messages that are a oneof, whose messages `kind` keep their rows where they are.
 * `rowsField`: its number.
 */
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
    return placed(extendMember(bare, bytesField(rowsField, rows)));
  };
}

/** In ModelInferResponse. */
const rawContentsField = 6;

interface InferResponse {
  rawOutputContents?: Uint8Array[];
}

/** A serializer like `serialize`, of ModelInferResponse, or of a message with nothing but one as its `member`: tensors stay where they are. */
export function placeTensors<Message extends object>(
  serialize: (message: Message) => Buffer,
  member?: string,
): (message: Message) => Buffer {
  return (message) => {
    const response = (
      member === undefined ? message : (message as Record<string, unknown>)[member]
    ) as InferResponse;
    const { rawOutputContents = [], ...rest } = response;
    const raw = rawOutputContents.flatMap((bytes) => bytesField(rawContentsField, bytes));
    if (raw.length === 0) return serialize(message);
    if (member === undefined) return placed([serialize(rest as Message), ...raw]);
    return placed(extendMember(serialize({ [member]: rest } as Message), raw));
  };
}

function placed(parts: readonly Uint8Array[]): Buffer {
  return new PlacedMessage(parts) as unknown as Buffer;
}

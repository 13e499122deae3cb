/** A message that goes to many peers, in the bytes that each of them gets: it is encoded once. */
export class EncodedMessage {
  constructor(readonly bytes: Buffer) {}
}

/** A serializer like `serialize` that takes encoded messages too. */
export function passEncoded<Message>(
  serialize: (message: Message) => Buffer,
): (message: Message | EncodedMessage) => Buffer {
  return (message) => (message instanceof EncodedMessage ? message.bytes : serialize(message));
}

/** Bounds of what nodes tell the coordinator: senders keep to them, and the coordinator refuses what is beyond. */
export const controlLimits = {
  /** Of one message, in bytes. */
  messageBytesMax: 4 * 1024 * 1024,
  /** Of a reason or another text for people, in characters. */
  textCharactersMax: 512,
  /** Live nodes. */
  membersMax: 4096,
  /** Streams at once that have not said hello. */
  strangersMax: 256,
  /** Batches that a router tells of in a heartbeat. */
  batchesToldMax: 16,
  /** Messages of one node: at once, when the coordinator stood still, and from then on a second. A busy router sends 300. */
  messagesAtOnce: 5_000,
  messagesPerSecond: 500,
} as const;

// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what a text for people must not hold.
const controlCharacters = /[\u0000-\u001f\u007f-\u009f]+/g;

/** A text as it may be told to the coordinator, and shown in a terminal: one line, of bounded length. */
export function plainText(text: string): string {
  return text.slice(0, controlLimits.textCharactersMax).replace(controlCharacters, ' ');
}

export function isPlainText(text: string): boolean {
  return text === plainText(text);
}

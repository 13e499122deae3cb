/** A header of HTTP/2 carries it, and peers bound all headers of a call. */
export const tokenCharactersMax = 4_096;

export const tokenAllowed = `one word of printable ASCII, at most ${tokenCharactersMax} characters`;

/** Whether servers take the text as a token. */
export function isToken(text: string): boolean {
  return text.length <= tokenCharactersMax && /^[\x21-\x7e]+$/.test(text);
}

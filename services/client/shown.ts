/** A value that a program gave, as an error shows it: what an object holds may be large. */
export function shown(value: unknown): unknown {
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if ((value === null || typeof value !== 'object') && typeof value !== 'function') return value;
  // The name of its class, of whichever realm: Uint16Array, Promise, Object.
  return `of type ${Object.prototype.toString.call(value).slice('[object '.length, -1)}`;
}

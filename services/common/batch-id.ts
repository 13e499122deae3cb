/** What clients may call a batch; the empty text leaves it to the router. */
export const batchIdPattern = /^[\x20-\x7e]{0,128}$/;
export const batchIdAllowed = 'up to 128 printable ASCII characters';

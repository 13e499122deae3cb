import { createHmac, timingSafeEqual } from 'node:crypto';
import { SwitchyardError } from '../common/errors.js';
import type { Random } from '../runtime/random.js';

/**
 * Who may open a link. Every worker makes a secret and tells it to the coordinator alone. The coordinator gives each router
 * a key of its own for the worker, made of the secret and the router's name. Both ends prove that they have the key, and
 * neither shows it: what a router or a worker learns from the other is of no use anywhere else.
 */
export const linkSecretBytes = 32;
const nonceBytes = 16;

const hmac = (key: Uint8Array, ...words: string[]) =>
  createHmac('sha256', key).update(JSON.stringify(words)).digest();

export function createLinkSecret(random: Random): Buffer {
  return random.bytes(linkSecretBytes);
}

/** The key of one router's links to the worker that has the secret. */
export function linkKey(secret: Uint8Array, router: string): Buffer {
  return hmac(secret, 'link', router);
}

/** The scheme, the router's name, a nonce and the proof. */
const linkPattern = /^Link ([\x21-\x7e]{1,256}) ([0-9a-f]{32}) ([0-9a-f]{64})$/;

/** What the two ends of a link being opened show each other. */
export interface LinkProof {
  router: string;
  /** The `authorization` header of the call. */
  header: string;
  /** What the worker's welcome must carry. */
  answer: Buffer;
}

/** A router's proof, with a nonce of its own. */
export function proveLink(random: Random, key: Uint8Array, router: string, worker: string): LinkProof {
  return proofOf(key, router, worker, random.bytes(nonceBytes).toString('hex'));
}

function proofOf(key: Uint8Array, router: string, worker: string, nonce: string): LinkProof {
  const proof = hmac(key, 'router', router, worker, nonce).toString('hex');
  return {
    router,
    header: `Link ${router} ${nonce} ${proof}`,
    answer: hmac(key, 'worker', router, worker, nonce),
  };
}

/** What a router has proved to the worker that has the secret. Throws UNAUTHENTICATED if it has not. */
export function checkLink(header: string, secret: Uint8Array, worker: string): LinkProof {
  const [, router, nonce] = linkPattern.exec(header) ?? [];
  if (router !== undefined && nonce !== undefined) {
    const expected = proofOf(linkKey(secret, router), router, worker, nonce);
    if (timingSafeEqual(Buffer.from(header), Buffer.from(expected.header))) return expected;
  }
  const allowed = `one with the key that the coordinator gives to a router for worker ${worker}`;
  const text = `the call carries no valid proof of a link; allowed: ${allowed}`;
  throw new SwitchyardError('UNAUTHENTICATED', text, { worker, allowed });
}

/** Whether an `authorization` header is meant as the proof of a link, and not as a token. */
export function isLinkProof(header: unknown): header is string {
  return typeof header === 'string' && header.startsWith('Link ');
}

/** Whether the worker has answered with its own proof. */
export function isAnswer(proof: LinkProof, answer: Uint8Array): boolean {
  return answer.byteLength === proof.answer.byteLength && timingSafeEqual(answer, proof.answer);
}

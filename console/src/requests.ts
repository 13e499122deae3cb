import type { OperationAnswer, Session } from '../../services/coordinator/console/wire.js';

async function request(method: string, path: string, body?: unknown): Promise<unknown> {
  const init =
    body === undefined ? {} : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } };
  const response = await fetch(`/console/${path}`, { method, ...init });
  const answer = (await response.json()) as OperationAnswer | object;
  if (!response.ok) throw new Error('error' in answer ? answer.error : `status ${response.status}`);
  return answer;
}

export const readSession = () => request('GET', 'session') as Promise<Session>;
export const signIn = (token: string) => request('POST', 'session', { token });
export const signOut = () => request('DELETE', 'session');

/** What an operator asks for; resolves to how it went, in words. */
export async function operate(operation: 'mark' | 'rebalance', body: object): Promise<string> {
  const { text } = (await request('POST', `operate/${operation}`, body)) as { text: string };
  return text;
}

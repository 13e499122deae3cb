import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { extname, join } from 'node:path';
import { builtFile } from '../../../native/locate.js';

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
};

/** Nothing but what this server has is loaded, no page elsewhere may show this one, and no script is in the page itself. */
const policy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

const headers = {
  'content-security-policy': policy,
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
};

interface Page {
  body: Buffer;
  type: string;
  tag: string;
}

/** The files of the built page, in memory. */
export class Pages {
  private readonly pages = new Map<string, Page>();

  constructor(directory = builtFile('console')) {
    if (!existsSync(directory)) return;
    for (const name of readdirSync(directory)) {
      const body = readFileSync(join(directory, name));
      const tag = `"${createHash('sha256').update(body).digest('base64url')}"`;
      this.pages.set(name, { body, type: types[extname(name)] ?? 'application/octet-stream', tag });
    }
  }

  /** Answers with the file of that name, the page itself if it is empty. False: there is none. */
  send(name: string, request: IncomingMessage, response: ServerResponse): boolean {
    const page = this.pages.get(name === '' ? 'index.html' : name);
    if (page === undefined) return false;
    const { body, type, tag } = page;
    const isKnown = request.headers['if-none-match'] === tag;
    response.writeHead(isKnown ? 304 : 200, {
      ...headers,
      etag: tag,
      'cache-control': 'no-cache',
      ...(!isKnown && { 'content-type': type, 'content-length': body.byteLength }),
    });
    response.end(isKnown ? undefined : body);
    return true;
  }
}

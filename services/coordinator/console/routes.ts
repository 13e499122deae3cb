import type { IncomingMessage, ServerResponse } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { z } from 'zod';
import { type Access, isLoopback } from '../../common/access.js';
import { asSwitchyardError, type ErrorCode, invalidArgument, SwitchyardError } from '../../common/errors.js';
import { checkBy } from '../../common/schema-issue.js';
import type { Clock } from '../../runtime/clock.js';
import type { Cluster } from '../cluster.js';
import { markTexts } from './events.js';
import { Pages } from './pages.js';
import { SignIn } from './sign-in.js';
import type { OperationAnswer, Session } from './wire.js';

export interface RoutesOptions {
  access: Access;
  insecure: boolean;
  clock: Clock;
  cluster: () => Cluster | null;
  whyNot: () => string;
  /** Takes a stream of changes. */
  watch: (response: ServerResponse) => void;
  /** Something was done that pages should show at once. */
  changed: () => void;
}

/** What `Access` knows the console's two kinds of requests by. */
export const consolePaths = { view: '/console/feed', operate: '/console/operate' } as const;

const bodyBytesMax = 4_096;

const signInBody = z.strictObject({ token: z.string().max(1_024) });
const markBody = z.strictObject({
  worker: z.string().max(256),
  mark: z.enum(['NO_MARK', 'CORDONED', 'DRAINED']),
});
const rebalanceBody = z.strictObject({});

const statusOf: Partial<Record<ErrorCode, number>> = {
  INVALID_ARGUMENT: 400,
  UNAUTHENTICATED: 401,
  PERMISSION_DENIED: 403,
  TOO_LARGE: 413,
  RESOURCE_EXHAUSTED: 503,
  NOT_READY: 503,
  NOT_LEADING: 503,
};

/** The paths below /console: the page's files, signing in, the feed, and operations. */
export class ConsoleRoutes {
  private readonly pages = new Pages();
  private readonly signIn: SignIn;

  constructor(private readonly options: RoutesOptions) {
    this.signIn = new SignIn(options.access, () => options.clock.wall());
  }

  async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      await this.route(request, response);
    } catch (thrown) {
      const { code, message } = asSwitchyardError(thrown);
      if (response.headersSent) response.destroy();
      else send(response, statusOf[code] ?? 500, { error: message } satisfies OperationAnswer);
    }
  }

  private async route(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? '').split('?')[0]!;
    this.checkHost(request);
    switch (`${request.method} ${path}`) {
      case 'GET /':
      case 'GET /console':
        response.writeHead(308, { location: '/console/' }).end();
        return;
      case 'GET /console/session':
        send(response, 200, this.session(request));
        return;
      case 'POST /console/session':
        return this.openSession(request, response);
      case 'DELETE /console/session':
        checkOrigin(request);
        response.setHeader('set-cookie', this.signIn.cookieGone(isSecure(request)));
        send(response, 200, {});
        return;
      case `GET ${consolePaths.view}`:
        this.check(consolePaths.view, request);
        this.options.watch(response);
        return;
      case 'POST /console/operate/mark':
        return this.operate(request, response, markBody, async (cluster, { worker, mark }) => {
          cluster.mark(worker, mark === 'NO_MARK' ? null : mark, this.options.clock.now());
          return `worker ${worker} ${markTexts[mark]}`;
        });
      case 'POST /console/operate/rebalance':
        return this.operate(request, response, rebalanceBody, async (cluster) => {
          const {
            toLoad = 0,
            toDrop = 0,
            netGainSeconds = 0,
          } = await cluster.rebalance(this.options.clock.now());
          if (Number(toLoad) + Number(toDrop) === 0) return 'nothing to move: no change pays';
          return `${toLoad} copies to load, ${toDrop} to drop; net gain ${Number(netGainSeconds).toFixed(1)} s an hour`;
        });
      default: {
        const isGet = request.method === 'GET' || request.method === 'HEAD';
        const name = path.startsWith('/console/') ? path.slice('/console/'.length) : null;
        if (isGet && name !== null && this.pages.send(name, request, response)) return;
        send(response, 404, { error: 'no such path of the console, or it is not built' });
      }
    }
  }

  private session(request: IncomingMessage): Session {
    const roles = this.signIn.rolesOf(request);
    const { access } = this.options;
    return {
      view: access.allows(consolePaths.view, roles),
      operate: access.allows(consolePaths.operate, roles),
      tokens: !access.isOpen(consolePaths.view) || !access.isOpen(consolePaths.operate),
    };
  }

  private async openSession(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { token } = await readBody(request, signInBody);
    const cookie = this.signIn.cookieFor(token.trim(), isSecure(request));
    if (cookie === null)
      throw new SwitchyardError('UNAUTHENTICATED', 'this is the token of no role of this cluster');
    response.setHeader('set-cookie', cookie);
    send(response, 200, {});
  }

  private async operate<Body extends z.ZodType>(
    request: IncomingMessage,
    response: ServerResponse,
    schema: Body,
    work: (cluster: Cluster, body: z.infer<Body>) => Promise<string>,
  ): Promise<void> {
    this.check(consolePaths.operate, request);
    const body = await readBody(request, schema);
    const cluster = this.options.cluster();
    if (cluster === null) throw new SwitchyardError('NOT_READY', this.options.whyNot());
    const text = await work(cluster, body);
    this.options.changed();
    send(response, 200, { text } satisfies OperationAnswer);
  }

  private check(path: string, request: IncomingMessage): void {
    const roles = this.signIn.rolesOf(request);
    if (this.options.access.allows(path, roles)) return;
    const allowed = path === consolePaths.view ? 'client or the operator' : 'operator';
    throw roles.length === 0
      ? new SwitchyardError('UNAUTHENTICATED', `sign in with the token of the ${allowed}`)
      : new SwitchyardError('PERMISSION_DENIED', `signed in as ${roles[0]}; allowed: the ${allowed}`);
  }

  /** Where no token is needed, a page of another site must not reach this server by a name of its own that leads to this machine. */
  private checkHost(request: IncomingMessage): void {
    const { access, insecure } = this.options;
    if (insecure || !access.isOpen(consolePaths.operate)) return;
    const name = (request.headers.host ?? '').replace(/:\d+$/, '').replace(/^\[|\]$/g, '');
    if (!isLoopback(name))
      throw new SwitchyardError(
        'PERMISSION_DENIED',
        'without tokens only this machine is served, by its own names: localhost or a loopback address',
      );
  }
}

/** A request that changes something must come from the console's own page: browsers say from where it is. */
function checkOrigin({ headers }: IncomingMessage): void {
  const site = headers['sec-fetch-site'];
  const origin = headers.origin;
  const isOwn = site === undefined || site === 'same-origin';
  const isHere = origin === undefined || /^https?:\/\/(.*)$/.exec(origin)?.[1] === headers.host;
  if (!isOwn || !isHere)
    throw new SwitchyardError('PERMISSION_DENIED', 'only the console itself may ask for this');
}

async function readBody<Body extends z.ZodType>(
  request: IncomingMessage,
  schema: Body,
): Promise<z.infer<Body>> {
  checkOrigin(request);
  const type = request.headers['content-type'] ?? '';
  if (type !== 'application/json') throw invalidArgument('content-type', type, 'application/json');
  let text = '';
  for await (const part of request.setEncoding('utf8')) {
    text += part;
    if (text.length > bodyBytesMax)
      throw new SwitchyardError('TOO_LARGE', `the body is longer than allowed: ${bodyBytesMax} characters`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw invalidArgument('body', text, 'JSON');
  }
  const { data, issue } = checkBy(schema, value);
  if (issue === null) return data;
  throw invalidArgument(issue.key, issue.key === 'token' ? '(hidden)' : issue.value, issue.allowed);
}

const isSecure = ({ socket }: IncomingMessage) => (socket as TLSSocket).encrypted === true;

function send(response: ServerResponse, status: number, value: unknown): void {
  const body = `${JSON.stringify(value)}\n`;
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
  });
  response.end(body);
}

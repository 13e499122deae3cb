import { timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { type Access, type AccessRole, accessRoles } from '../../common/access.js';
import { certificateOf } from '../../common/certificate.js';

const cookieName = 'switchyard-console';
const lifetimeMs = 12 * 3_600_000;

/**
 * Who is signed in, by a cookie: role, end, and a mark that only a coordinator with the role's token can make. So nothing is kept here, every coordinator of the
 * cluster takes it, and with another token it is void. Pages cannot read it.
 */
export class SignIn {
  constructor(
    private readonly access: Access,
    /** Milliseconds since 1970. */
    private readonly wall: () => number,
  ) {}

  /** The header that signs a browser in, for `token`; null: it is no role's. */
  cookieFor(token: string, secure: boolean): string | null {
    const [role] = this.access.rolesOf(`Bearer ${token}`);
    if (role === undefined) return null;
    const end = String(Math.round(this.wall() + lifetimeMs));
    return this.cookie(`${role}.${end}.${this.mark(role, end)}`, lifetimeMs / 1000, secure);
  }

  /** The header that signs it out. */
  cookieGone(secure: boolean): string {
    return this.cookie('', 0, secure);
  }

  /** The roles of whoever sends this request: by the cookie, or as for any other path. */
  rolesOf(request: IncomingMessage): readonly AccessRole[] {
    const roles = this.access.rolesOf(request.headers.authorization, certificateOf(request.socket));
    const signedIn = this.signedIn(request.headers.cookie ?? '');
    return signedIn === null ? roles : [...roles, signedIn];
  }

  private signedIn(cookies: string): AccessRole | null {
    const pair = cookies.split(/; */).find((one) => one.startsWith(`${cookieName}=`)) ?? '';
    const [name, end = '', mark = ''] = pair.slice(cookieName.length + 1).split('.');
    const role = accessRoles.find((one) => one === name);
    if (role === undefined || !(Number(end) > this.wall())) return null;
    const made = this.mark(role, end);
    if (made === null) return null;
    const [expected, given] = [Buffer.from(made), Buffer.from(mark)];
    return given.length === expected.length && timingSafeEqual(given, expected) ? role : null;
  }

  private mark(role: AccessRole, end: string): string | null {
    return this.access.sign(role, `console ${role} ${end}`);
  }

  private cookie(value: string, seconds: number, secure: boolean): string {
    const attributes = `Path=/console; Max-Age=${seconds}; HttpOnly; SameSite=Strict${secure ? '; Secure' : ''}`;
    return `${cookieName}=${value}; ${attributes}`;
  }
}

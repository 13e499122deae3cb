import { describe, expect, test } from '@jest/globals';
import { Membership } from '../../services/coordinator/membership.js';
import { hello } from './support.js';

describe('membership', () => {
  test('a name belongs to a live node, in its role', () => {
    const membership = new Membership(1000);
    membership.join(hello('w'), 0);
    expect(() => membership.join(hello('w'), 1)).toThrow(
      expect.objectContaining({ code: 'NAME_TAKEN', message: expect.stringContaining('"w"') }),
    );
    membership.join(hello('w', { role: 'ROUTER' }), 1);
  });

  test('a dead node leaves its name to the next', () => {
    const membership = new Membership(1000);
    const first = membership.join(hello('w'), 0);
    expect(membership.end(first, 'its stream broke')).toBe(true);
    expect(membership.end(first, 'again')).toBe(false);
    expect(first.reason).toBe('its stream broke');
    const second = membership.join(hello('w'), 5);
    expect(second.incarnation).not.toBe(first.incarnation);
    expect(membership.all()).toEqual([second]);
  });

  test('silence longer than the lease ends a life, silence of the lease does not', () => {
    const membership = new Membership(1000);
    const member = membership.join(hello('w'), 0);
    membership.expire(900, 100);
    expect(membership.expire(1000, 100)).toEqual([]);
    expect(membership.expire(1100, 100)).toEqual([member]);
    expect(member).toMatchObject({ alive: false, reason: 'silent for 1100 ms; allowed: 1000 ms' });
  });

  test('time in which the coordinator itself stood still is not held against the nodes', () => {
    const membership = new Membership(1000);
    const member = membership.join(hello('w'), 0);
    membership.expire(100, 100);
    expect(membership.expire(60_100, 100)).toEqual([]);
    expect(membership.expire(60_200, 100)).toEqual([]);
    for (let now = 60_300; now <= 60_900; now += 100) expect(membership.expire(now, 100)).toEqual([]);
    expect(membership.expire(61_000, 100)).toEqual([member]);
  });

  test('a node that said goodbye takes no work, and is remembered as having left', () => {
    const membership = new Membership(1000);
    const member = membership.join(hello('w'), 0);
    membership.leave(member, 'SIGTERM');
    expect(membership.serving('WORKER')).toEqual([]);
    expect(member).toMatchObject({ alive: true, draining: true, reason: 'leaving: SIGTERM' });
    membership.end(member, 'the node ended its stream');
    expect(member).toMatchObject({ alive: false, reason: 'left: SIGTERM' });
  });

  test('the dead are listed up to a bound, the living all', () => {
    const membership = new Membership(1000);
    const alive = membership.join(hello('alive'), 0);
    for (let index = 0; index < 200; index += 1)
      membership.end(membership.join(hello(`w${index}`), 0), 'gone');
    expect(membership.all().length).toBe(65);
    expect(membership.all()[0]).toBe(alive);
    expect(membership.all().at(-1)!.hello.name).toBe('w199');
  });

  test.each([
    [{ name: '' }, /name is ""/],
    [{ name: 'a b' }, /name is "a b"/],
    [{ name: 'x'.repeat(64) }, /name is "x+"; allowed: .*at most 63/],
    [{ address: 'nowhere' }, /address is "nowhere"; allowed: host:port/],
    [{ host: 'h'.repeat(2000) }, /host is "h+…"; allowed: at most 1024/],
  ])('a hello that makes no sense is refused: %j', (fields, message) => {
    expect(() => new Membership(1000).join(hello('w', fields), 0)).toThrow(message);
  });
});

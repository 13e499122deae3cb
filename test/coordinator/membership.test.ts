import { describe, expect, test } from '@jest/globals';
import { controlLimits } from '../../services/common/control-limits.js';
import { Membership } from '../../services/coordinator/membership.js';
import { hello } from './support.js';

const options = { leaseMs: 1000, leftKeptMs: 60_000, deadKeptMs: 900_000 };
const never = () => false;

describe('membership', () => {
  test('a name belongs to a live node, in its role', () => {
    const membership = new Membership(options);
    membership.join(hello('w'), 0);
    expect(() => membership.join(hello('w'), 1)).toThrow(
      expect.objectContaining({ code: 'NAME_TAKEN', message: expect.stringContaining('"w"') }),
    );
    membership.join(hello('w', { role: 'ROUTER' }), 1);
  });

  test('a dead node leaves its name to the next', () => {
    const membership = new Membership(options);
    const first = membership.join(hello('w'), 0);
    expect(membership.end(first, 'its stream broke', 3)).toBe(true);
    expect(membership.end(first, 'again', 4)).toBe(false);
    expect(first.reason).toBe('its stream broke');
    const second = membership.join(hello('w'), 5);
    expect(second.incarnation).not.toBe(first.incarnation);
    expect(membership.all()).toEqual([second]);
  });

  test('a heartbeat that is overdue by more than the lease ends a life, silence of the lease does not', () => {
    const membership = new Membership(options);
    const member = membership.join(hello('w'), 0);
    // A heartbeat is due three times within the lease.
    for (let now = 100; now <= 1_300; now += 100) expect(membership.expire(now, 100)).toEqual([]);
    expect(membership.expire(1_400, 100)).toEqual([member]);
    const reason = 'silent for 1067 ms beyond its heartbeat; allowed: 1000 ms';
    expect(member).toMatchObject({ alive: false, reason });
  });

  test('time in which the coordinator stood still before it looked for the first time is not either', () => {
    const membership = new Membership(options);
    const member = membership.join(hello('w'), 0);
    expect(membership.expire(60_000, 100)).toEqual([]);
    for (let now = 60_100; now <= 61_200; now += 100) expect(membership.expire(now, 100)).toEqual([]);
    expect(membership.expire(61_300, 100)).toEqual([member]);
  });

  test('time in which the coordinator itself stood still is not held against the nodes', () => {
    const membership = new Membership(options);
    const member = membership.join(hello('w'), 0);
    membership.expire(100, 100);
    expect(membership.expire(60_100, 100)).toEqual([]);
    expect(membership.expire(60_200, 100)).toEqual([]);
    for (let now = 60_300; now <= 61_200; now += 100) expect(membership.expire(now, 100)).toEqual([]);
    expect(membership.expire(61_300, 100)).toEqual([member]);
  });

  test('a node that said goodbye takes no work, and is remembered as having left', () => {
    const membership = new Membership(options);
    const member = membership.join(hello('w'), 0);
    membership.leave(member, 'SIGTERM');
    expect(membership.serving('WORKER')).toEqual([]);
    expect(member).toMatchObject({ alive: true, draining: true, reason: 'leaving: SIGTERM' });
    membership.end(member, 'the node ended its stream', 5);
    expect(member).toMatchObject({ alive: false, reason: 'left: SIGTERM' });
  });

  test('a node that left is listed for a minute, one that died for a quarter of an hour', () => {
    const membership = new Membership(options);
    const names = () => membership.all().map((member) => member.hello.name);
    const [alive, left, died] = ['alive', 'left', 'died'].map((name) => membership.join(hello(name), 0));
    membership.leave(left!, 'SIGTERM');
    for (const member of [left!, died!]) membership.end(member, 'gone', 1_000);
    expect(membership.forget(61_000, never)).toEqual([]);
    expect(names()).toEqual(['alive', 'left', 'died']);
    expect(membership.forget(61_001, never)).toEqual([left]);
    expect(names()).toEqual(['alive', 'died']);
    expect(membership.forget(901_000, never)).toEqual([]);
    expect(membership.forget(901_001, (member) => member === died)).toEqual([]);
    expect(membership.forget(901_001, never)).toEqual([died]);
    expect(membership.all()).toEqual([alive]);
  });

  test('the dead are listed up to a bound, the newest, those that are needed and the living all', () => {
    const membership = new Membership(options);
    const alive = membership.join(hello('alive'), 0);
    const needed = membership.join(hello('needed'), 0);
    membership.end(needed, 'gone', 0);
    for (let index = 0; index < 200; index += 1) {
      membership.end(membership.join(hello(`w${index}`), 0), 'gone', index);
      membership.forget(index, (member) => member === needed);
    }
    expect(membership.all().length).toBe(66);
    expect(membership.all().slice(0, 2)).toEqual([alive, needed]);
    expect(membership.all().at(-1)!.hello.name).toBe('w199');
  });

  test('there are no more live nodes than a bound, and a place is free when one ends', () => {
    const membership = new Membership(options);
    const first = membership.join(hello('first'), 0);
    for (let index = 1; index < controlLimits.membersMax; index += 1) membership.join(hello(`w${index}`), 0);
    expect(() => membership.join(hello('late'), 0)).toThrow(
      expect.objectContaining({
        code: 'RESOURCE_EXHAUSTED',
        message: expect.stringContaining('4096 live nodes'),
      }),
    );
    membership.end(first, 'gone', 1);
    membership.join(hello('late'), 1);
  });
});

import { isIPv6 } from 'node:net';
import { networkInterfaces } from 'node:os';
import type { Addon, SegmentRange, SharedSegment } from '../../../native/index.js';
import { isLoopback } from '../../common/access.js';
import { invalidArgument, overLimit, SwitchyardError } from '../../common/errors.js';
import { safeInteger } from '../../transport/messages.js';
import { notFound } from './models.js';

/** A part of a segment of shared memory that a client has registered. */
export interface Region {
  name: string;
  key: string;
  offset: number;
  byteSize: number;
}

/** A region with its segment, which stays open as long as somebody uses it. */
interface OpenRegion extends Region {
  segment: SharedSegment;
  users: number;
  registered: boolean;
}

export interface RegionsOptions {
  native: Pick<Addon, 'openSharedSegment'>;
  /** `sharedMemoryRegions`: at once, at most. */
  max: number;
  /** Whose limit that is, for errors. */
  node: string;
}

const nameCharactersMax = 1024;

/** The shared memory that clients of this machine have registered. Any of them may use it by its name. */
export class SharedRegions {
  private readonly regions = new Map<string, OpenRegion>();

  constructor(private readonly options: RegionsOptions) {}

  /**
   * @throws PERMISSION_DENIED for a client of another machine, NAME_TAKEN, INVALID_ARGUMENT for what is no such segment,
   * RESOURCE_EXHAUSTED.
   */
  register({ name, key, offset, byteSize }: Region, peer: string): void {
    requireLocal(peer);
    if (name === '' || name.length > nameCharactersMax) {
      throw invalidArgument('name', name, `1 to ${nameCharactersMax} characters`);
    }
    if (this.regions.has(name)) {
      const text = `name is ${JSON.stringify(name)}, which a registered region has; allowed: another name, or this one once it is unregistered`;
      throw new SwitchyardError('NAME_TAKEN', text, { field: 'name', value: name });
    }
    if (this.regions.size >= this.options.max) this.dropUnlinked();
    if (this.regions.size >= this.options.max) {
      const by = { setting: 'sharedMemoryRegions', node: this.options.node };
      throw overLimit(
        'RESOURCE_EXHAUSTED',
        'registered regions',
        this.regions.size + 1,
        this.options.max,
        by,
      );
    }
    const segment = this.options.native.openSharedSegment(
      key,
      safeInteger('offset', offset),
      safeInteger('byte_size', byteSize),
    );
    this.regions.set(name, { name, key, offset, byteSize, segment, users: 0, registered: true });
  }

  /** Those that are registered, or the one of that name. Throws NOT_FOUND. */
  list(name: string): Region[] {
    if (name === '') return [...this.regions.values()];
    return [this.find(name)];
  }

  /** All if the name is empty; a name that is not registered is none. */
  unregister(name: string): void {
    for (const region of name === '' ? [...this.regions.values()] : [this.regions.get(name)]) {
      if (region !== undefined) this.drop(region);
    }
  }

  /**
   * The bytes of a region for one request, until `done`. Throws NOT_FOUND, PERMISSION_DENIED, and INVALID_ARGUMENT for what lies beyond
   * the region.
   */
  use(
    name: string,
    byteOffset: number,
    byteLength: number,
    peer: string,
  ): { range: SegmentRange; done: () => void } {
    requireLocal(peer);
    const region = this.find(name);
    if (byteOffset > region.byteSize || byteLength > region.byteSize - byteOffset) {
      const allowed = `at most the ${region.byteSize} bytes of region ${JSON.stringify(name)}`;
      throw invalidArgument(
        'shared_memory_offset + shared_memory_byte_size',
        `${byteOffset} + ${byteLength}`,
        allowed,
      );
    }
    region.users += 1;
    let used = true;
    const done = () => {
      if (!used) return;
      used = false;
      region.users -= 1;
      this.closeUnused(region);
    };
    return { range: { segment: region.segment, byteOffset, byteLength }, done };
  }

  private find(name: string): OpenRegion {
    const region = this.regions.get(name);
    if (region === undefined) throw notFound('shared_memory_region', name, 'the name of a registered region');
    return region;
  }

  /** Clients that were killed leave their regions here. */
  private dropUnlinked(): void {
    for (const region of this.regions.values()) if (region.segment.unlinked) this.drop(region);
  }

  private drop(region: OpenRegion): void {
    this.regions.delete(region.name);
    region.registered = false;
    this.closeUnused(region);
  }

  private closeUnused({ registered, users, segment }: OpenRegion): void {
    if (!registered && users === 0) segment.release();
  }
}

/** Only a client of this machine has memory here; another would be given that of somebody else. `peer`: host:port. */
function requireLocal(peer: string): void {
  const host = peer
    .slice(0, peer.lastIndexOf(':'))
    .replace(/^\[|\]$/g, '')
    .replace(/^::ffff:/, '');
  if (isLoopback(host)) return;
  const own = Object.values(networkInterfaces()).flatMap((addresses = []) =>
    addresses.map(({ address }) => address),
  );
  if (own.includes(isIPv6(host) ? host.replace(/%.*/, '') : host)) return;
  const text = `the call came from ${host}; allowed: shared memory for clients on the router's own machine`;
  throw new SwitchyardError('PERMISSION_DENIED', text, { peer: host });
}

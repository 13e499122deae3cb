import { join } from 'node:path';
import { loadPackageDefinition, type ServiceError } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { packageRoot } from '../../native/locate.js';
import { invalidArgument } from '../common/errors.js';
import type { KVClient } from '../common/generated/etcdserverpb/KV.js';
import type { RangeResponse } from '../common/generated/etcdserverpb/RangeResponse.js';
import type { TxnRequestInput } from '../common/generated/etcdserverpb/TxnRequest.js';
import type { TxnResponse } from '../common/generated/etcdserverpb/TxnResponse.js';
import type { ProtoGrpcType } from '../common/generated/kv.js';
import { connect } from '../common/grpc-channel.js';
import { fromServiceError } from '../common/status.js';
import type { Tls } from '../common/tls.js';
import type { Clock } from '../runtime/clock.js';
import type { LeaderLease, LeaseRecord, StoredLease } from '../runtime/leader-lease.js';

const messageBytesMax = 64 * 1024;

/**
 * The lease as a key of etcd, written by transactions that compare its revision. etcd's own leases are not used: they end by etcd's clock, and a coordinator must
 * know by its own that it does not lead any more.
 */
export class EtcdLease implements LeaderLease {
  private readonly key: Buffer;
  private readonly members: KVClient[];
  /** The member that is asked: one that failed is asked last. */
  private member = 0;

  /** `addresses`: host:port of etcd's members, at least one. `tls`: null: connections are not encrypted; otherwise it ends with the lease. */
  constructor(
    addresses: readonly string[],
    name: string,
    private readonly clock: Clock,
    private readonly tls: Tls | null,
  ) {
    const definition = loadSync('etcd/kv.proto', {
      includeDirs: [join(packageRoot(), 'proto')],
      longs: Number,
      enums: String,
      defaults: true,
    });
    const { KV } = (loadPackageDefinition(definition) as unknown as ProtoGrpcType).etcdserverpb;
    this.key = Buffer.from(`switchyard/leases/${name}`);
    this.members = addresses.map((address) => connect(KV, address, { token: null, tls, messageBytesMax }));
  }

  async read(withinMs: number): Promise<StoredLease | null> {
    const { key } = this;
    const { kvs } = await this.ask<RangeResponse>(withinMs, (member, options, done) =>
      member.Range({ key }, options, done),
    );
    const [found] = kvs;
    return found === undefined ? null : { ...parse(found.value), version: String(found.modRevision) };
  }

  async replace(version: string | null, record: LeaseRecord, withinMs: number): Promise<StoredLease | null> {
    const { key } = this;
    const value = Buffer.from(JSON.stringify(record));
    const request: TxnRequestInput = {
      compare: [{ key, target: 'MOD', result: 'EQUAL', modRevision: version ?? 0 }],
      success: [{ requestPut: { key, value } }],
    };
    const { succeeded, header } = await this.ask<TxnResponse>(withinMs, (member, options, done) =>
      member.Txn(request, options, done),
    );
    return succeeded ? { ...record, version: String(header!.revision) } : null;
  }

  close(): void {
    for (const member of this.members) member.close();
    this.tls?.close();
  }

  private ask<Answer>(
    withinMs: number,
    call: (
      member: KVClient,
      options: { deadline: number },
      done: (error: ServiceError | null, answer?: Answer) => void,
    ) => unknown,
  ): Promise<Answer> {
    const { members, member } = this;
    return new Promise((resolve, reject) => {
      call(members[member]!, { deadline: this.clock.wall() + withinMs }, (error, answer) => {
        if (error === null) {
          resolve(answer!);
          return;
        }
        if (this.member === member) this.member = (member + 1) % members.length;
        reject(fromServiceError(error));
      });
    });
  }
}

function parse(value: Buffer): LeaseRecord {
  try {
    const { holder, address, term, leaseMs } = JSON.parse(value.toString());
    return { holder: String(holder), address: String(address), term: Number(term), leaseMs: Number(leaseMs) };
  } catch {
    throw invalidArgument('the lease in etcd', value.toString(), 'what a coordinator wrote');
  }
}

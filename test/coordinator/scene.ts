import { expect } from '@jest/globals';
import type { NodeHello } from '../../services/common/generated/switchyard/v1/NodeHello.js';
import type { RouterReport } from '../../services/common/generated/switchyard/v1/RouterReport.js';
import { type ExpertId, expertsIn, groupByLayer } from '../../services/common/layer-experts.js';
import { Cluster } from '../../services/coordinator/cluster.js';
import type { Member } from '../../services/coordinator/membership.js';
import type { PlacementOptions } from '../../services/coordinator/plans.js';
import { hello, placementOptions, tinyModel } from './support.js';

export const expertBytes = tinyModel.expertBytes;
export const allExperts = tinyModel.layers.flatMap(({ layer, experts }) =>
  Array.from({ length: experts }, (_, expert) => ({ layer, expert })),
);
export const total = allExperts.length;

/** A coordinator's decisions, with workers that do at once what they are told, without connections. */
export class Scene {
  readonly cluster: Cluster;
  readonly told = new Map<string, ExpertId[]>();
  readonly failures: string[] = [];
  readonly reach: [string, string][] = [];
  nowMs = 0;
  private dirty = false;

  constructor(placement: Partial<PlacementOptions> = {}) {
    this.cluster = new Cluster(
      {
        term: 1,
        model: tinyModel,
        topology: () => null,
        leaseMs: 1_000,
        leftKeptMs: 2_000,
        deadKeptMs: 2_000,
        feedback: { rate: 0.01, limit: 1, windowRowsPerExpert: 4 },
        placement: { ...placementOptions, ...placement },
      },
      {
        onChange: () => {
          this.dirty = true;
        },
        onAssignment: (member) => this.obey(member),
        onBias: () => {},
        onReach: ({ hello, unreached }) => this.reach.push([hello.name, unreached]),
        onPlanFailed: ({ message }) => this.failures.push(message),
      },
    );
  }

  worker(name: string, fields: Partial<NodeHello> = {}): Member {
    const member = this.cluster.join(hello(name, fields), this.nowMs);
    if (this.cluster.plans.started) this.obey(member);
    return this.settle(member);
  }

  router(name: string, fields: Partial<NodeHello> = {}): Member {
    const member = this.cluster.join(hello(name, { role: 'ROUTER', ...fields }), this.nowMs);
    return this.settle(member);
  }

  /** The router uses this placement, and is told the present one. `links`: to workers that it reaches, and to those that it does not. */
  uses(
    member: Member,
    term: number,
    epoch: number,
    loads: { layer: number; rows: Buffer }[] = [],
    links: Record<string, boolean> | null = null,
  ): void {
    member.told = { term: this.cluster.term, epoch: this.cluster.epoch };
    const report = {
      loads: loads.map((load) => ({ ...load, steered: Buffer.alloc(0) })),
      links: Object.entries(links ?? {}).map(([worker, stands]) => {
        return { worker, transport: stands ? 'GRPC' : 'NO_LINK', lanes: '', reason: 'refused' };
      }),
      linksChanged: links !== null,
      notReady: '',
      held: [],
      termInUse: term,
      epochInUse: epoch,
    };
    const measured = { tokens: 0, bytesInFlight: 0, eventLoopUtilization: 0, rssBytes: 0 };
    this.cluster.routerReport(member, { ...report, ...measured, figures: null } as RouterReport, this.nowMs);
    this.settle(null);
  }

  /** It is gone, and so long that nobody remembers it. */
  forget(member: Member): void {
    this.cluster.end(member, 'killed', this.nowMs);
    this.settle(null);
    // A coordinator that stood still gives its members that time on top.
    for (let seconds = 0; seconds < 6; seconds += 1) this.pass(1_000);
    expect(this.cluster.members()).not.toContain(member);
  }

  /** Time goes by in which every member lets itself be heard. */
  pass(ms: number): void {
    this.nowMs += ms;
    for (const member of this.cluster.members()) if (member.alive) this.cluster.heard(member, this.nowMs);
    this.cluster.expire(this.nowMs, ms);
    this.settle(null);
  }

  settle<Value>(value: Value): Value {
    for (let steps = 0; this.dirty; steps += 1) {
      if (steps > 1_000) throw new Error('it does not come to rest');
      this.dirty = false;
      this.cluster.settle(this.nowMs);
    }
    return value;
  }

  private obey(member: Member): void {
    const { version, experts } = this.cluster.assignment(member);
    const ready = [...expertsIn((experts ?? []) as never)];
    this.told.set(member.hello.name, ready);
    this.cluster.workerReport(member, {
      ...{ rowsQueued: 0, rowsComputed: 0, computeSeconds: 0, bytesInFlight: 0, rssBytes: 0 },
      ...{ eventLoopUtilization: 0, load: null, device: null, rowsBySize: [], secondsBySize: [] },
      ready: groupByLayer(ready),
      readyChanged: true,
      assignment: Number(version ?? 0),
    });
  }
}

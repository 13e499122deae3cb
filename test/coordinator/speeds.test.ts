import { describe, expect, test } from '@jest/globals';
import { planInput } from '../../services/cli/plan-input.js';
import { recordCluster } from '../../services/cli/recording.js';
import type { ClusterDescription } from '../../services/client/index.js';
import { CallCounts } from '../../services/common/call-sizes.js';
import type { WorkerReport } from '../../services/common/generated/switchyard/v1/WorkerReport.js';
import type { Member } from '../../services/coordinator/membership.js';
import type { PlanInput } from '../../services/placement/input.js';
import { plan } from '../../services/placement/plan.js';
import { Scene } from './scene.js';
import { tinyModel } from './support.js';

/** Of one expert: its weights are read once for all rows of a call. */
const secondsOf = (rows: number) => 100e-6 + rows * 1e-6;

/** A cluster whose workers hold the same, of which a test says what each computes in a second. */
class TwoWorkers {
  readonly inputs: PlanInput[] = [];
  readonly scene = new Scene({
    workers: 2,
    plan: async (input) => {
      this.inputs.push(input);
      return plan(input);
    },
  });
  private readonly counts = new Map<Member, CallCounts>();
  private readonly workers = ['w0', 'w1'].map((name) => this.scene.worker(name));

  /** Ten reports of calls of these sizes by both workers; those of the second take `factor` times as long. */
  compute(sizes: readonly [number[], number[]], factor = 1): this {
    for (let report = 0; report < 10; report += 1)
      for (const [index, member] of this.workers.entries()) {
        const counts = this.counts.get(member) ?? new CallCounts();
        this.counts.set(member, counts);
        for (const rows of sizes[index]!)
          for (let call = 0; call < 50 + report; call += 1)
            counts.add(rows, secondsOf(rows) * (index === 1 ? factor : 1));
        this.scene.cluster.workerReport(member, {
          ...member.worker!,
          ...{ load: { bytesPerSecond: 1e9 }, readyChanged: false, assignment: member.acknowledged },
          ...counts.report(),
        } as WorkerReport);
      }
    return this;
  }

  /** What the coordinator itself plans with. */
  async live(): Promise<number[]> {
    await this.scene.cluster.rebalance(0);
    return this.inputs.at(-1)!.workers.map(({ rowsPerSecond }) => rowsPerSecond);
  }

  /** What a plan is made with for a recording of the cluster. */
  recorded(): number[] {
    const { cluster } = this.scene;
    const figures = cluster.figures();
    const { nodes = [], ...view } = cluster.view;
    const description = {
      model: {
        ...{ name: 'tiny', hidden: tinyModel.hidden, expertBytes: tinyModel.expertBytes },
        routing: { topK: 1 },
        layers: tinyModel.layers.map(({ layer, experts }) => ({
          ...{ layer, experts, isolated: null, shared: [] },
          expert: { ffn: 1, activation: 'SWIGLU', latent: 0 },
        })),
      },
      view: {
        ...view,
        nodes: nodes.map((node) => ({ ...node, figures: figures.find(({ name }) => name === node.name) })),
        placement: cluster.placement(),
      },
    } as unknown as ClusterDescription;
    const recorded = recordCluster(description);
    const layers = recorded.layers.map((layer) => ({
      ...layer,
      rows: layer.workersOf.map(() => 1),
      choices: null,
    }));
    const recording = JSON.parse(JSON.stringify({ ...recorded, layers, seconds: 1 }));
    const options = { copies: 1, replicaSlots: null, horizon: 60 };
    return planInput(recording, null, options).workers.map(({ rowsPerSecond }) => rowsPerSecond);
  }
}

describe('workers are planned', () => {
  test('as equally fast if one computed calls of few rows and the other long ones', async () => {
    const measured = new TwoWorkers().compute([[1, 2, 3, 4], [256]]);
    for (const [first, second] of [await measured.live(), measured.recorded()]) expect(first).toBe(second);
  });

  test('as equally fast if most calls of one were short and of the other long', async () => {
    const sizes = (short: number, long: number) =>
      [1, 2, 3, 4, 5, 6, 7, 8, 200, 256, 300].flatMap((rows) =>
        new Array<number>(rows < 100 ? short : long).fill(rows),
      );
    const measured = new TwoWorkers().compute([sizes(20, 1), sizes(1, 20)]);
    for (const [first, second] of [await measured.live(), measured.recorded()]) expect(first).toBe(second);
  });

  test('as slower if calls of the same sizes took twice as long', async () => {
    const measured = new TwoWorkers().compute(
      [
        [1, 2, 3, 4, 64],
        [3, 4, 64, 256],
      ],
      2,
    );
    for (const [first, second] of [await measured.live(), measured.recorded()])
      expect(second! / first!).toBeCloseTo(0.5, 1);
  });
});

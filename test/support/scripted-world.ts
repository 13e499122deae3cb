import type { CoordinatorMessageInput } from '../../services/common/generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeMessage } from '../../services/common/generated/switchyard/v1/NodeMessage.js';
import { encodeControl } from '../../services/common/protocol.js';
import { describeModel } from '../../services/coordinator/describe.js';
import { EventLog } from '../../services/simulator/event-log.js';
import { modelSpec } from '../../services/simulator/model.js';
import { Network } from '../../services/simulator/network.js';
import { join } from '../../services/simulator/nodes.js';
import { SeededRandom } from '../../services/simulator/random.js';
import { drawScenario } from '../../services/simulator/scenario.js';
import { VirtualTime } from '../../services/simulator/virtual-time.js';
import { simulatedProcess } from './simulated.js';

/** Nodes in virtual time, and a coordinator that says what a test wants. */
export function scriptedWorld() {
  const scenario = { ...drawScenario(new SeededRandom(3)), shape: { layers: 1, experts: 3, topK: 1 } };
  const time = new VirtualTime();
  const random = new SeededRandom(7);
  const log = new EventLog(() => time.nowMs);
  const network = new Network({ time, random, rates: scenario.rates, log });
  const spec = modelSpec(scenario.shape);
  const process = (name: string) => simulatedProcess(name, { time, random });
  /** What nodes have said, and how to answer each, in the order in which they came. */
  const heard: { said: NodeMessage[]; say: (message: CoordinatorMessageInput) => void }[] = [];
  network.listen(process('coordinator'), 'coordinator:1', join, (stream) => {
    const said: NodeMessage[] = [];
    stream.listen({ message: (message) => said.push(message), end: () => {}, fail: () => {} });
    const say = (message: CoordinatorMessageInput) => stream.write(encodeControl(message));
    heard.push({ said, say });
    say({ welcome: { model: describeModel(spec), feedback: false } });
  });
  /** Tells it to the node that came last, and lets half a second pass. */
  const told = async (message: CoordinatorMessageInput) => {
    heard.at(-1)!.say(message);
    await time.run(time.nowMs + 500, () => false);
  };
  /** Time passes in which the coordinator lets itself be heard. */
  const pass = async (ms: number) => {
    for (const endMs = time.nowMs + ms; time.nowMs < endMs; ) {
      for (const { say } of heard) say({ heartbeat: {} });
      await time.run(time.nowMs + scenario.leaseMs / 3, () => false);
    }
  };
  return {
    scenario,
    time,
    process,
    heard,
    pass,
    told,
    surroundings: { scenario, spec, network, log, coordinators: ['coordinator:1'], leases: null },
  };
}

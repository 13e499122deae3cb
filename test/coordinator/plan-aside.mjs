import { SwitchyardError } from '../../dist/services/common/errors.js';
import { PlansAside } from '../../dist/services/coordinator/plan-aside.js';
import { plan } from '../../dist/services/placement/plan.js';

// Plans for 64 workers of so many bytes and 1,024 experts, which takes a thread, and prints what came and how often the event loop turned meanwhile.
const workers = Array.from({ length: 64 }, (_, at) => ({
  name: `w${at}`,
  host: `h${at % 8}`,
  memoryBytes: Number(process.argv[2]),
  rowsPerSecond: 1000,
  loadBytesPerSecond: 1e9,
}));
const loads = Float64Array.from({ length: 256 }, (_, expert) => 1000 / (1 + expert));
const layers = [0, 1, 2, 3].map((layer) => ({ layer, expertBytes: 1000, loads, choices: null }));
const present = layers.map(() => Array.from({ length: 256 }, () => []));
const input = {
  workers,
  layers,
  topK: 2,
  present,
  copiesMin: 1,
  replicaSlots: null,
  limits: { loads: 8, bytesPerSecond: 1e9 },
  horizonSeconds: 3600,
  crossingSeconds: 0,
};
let turns = 0;
const ticking = setInterval(() => {
  turns += 1;
}, 1);
try {
  const aside = new PlansAside();
  const planning = aside.plan(input);
  const underWay = aside.underWay();
  const same = JSON.stringify(await planning) === JSON.stringify(plan(input));
  console.log(JSON.stringify({ same, turns, underWay, done: aside.done, left: aside.underWay() }));
} catch (error) {
  console.log(
    JSON.stringify({
      known: error instanceof SwitchyardError,
      code: error.code,
      message: error.message,
      details: error.details,
    }),
  );
}
clearInterval(ticking);

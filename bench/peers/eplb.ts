/**
 * EPLB, the expert-parallelism load balancer that DeepSeek published with its models, written from its description: hot experts are
 * replicated, and the copies packed so that every GPU has as many of them. A copy carries an even share of its expert's load.
 */
export interface EplbShape {
  /** Copies of all experts of a layer: a multiple of `gpus`. */
  replicas: number;
  /** Groups of consecutive experts, kept on one node where `nodes` divides them. */
  groups: number;
  nodes: number;
  gpus: number;
}

/** [experts] → the GPU of each of its copies; one GPU may have several of them. */
export function eplb(loads: Float64Array, { replicas, groups, nodes, gpus }: EplbShape): number[][] {
  const isHierarchical = groups % nodes === 0;
  const [packedGroups, packs] = isHierarchical ? [groups, nodes] : [1, 1];
  const groupSize = loads.length / packedGroups;
  const groupLoads = Float64Array.from({ length: packedGroups }, (_, group) =>
    sum(loads.subarray(group * groupSize, (group + 1) * groupSize)),
  );
  const gpusOf: number[][] = Array.from(loads, () => []);
  for (const [node, members] of pack(groupLoads, packs).entries()) {
    const experts = members.flatMap((group) =>
      Array.from({ length: groupSize }, (_, index) => group * groupSize + index),
    );
    const copies = replicate(experts, loads, replicas / packs);
    const counts = new Map<number, number>();
    for (const expert of copies) counts.set(expert, (counts.get(expert) ?? 0) + 1);
    const copyLoads = Float64Array.from(copies, (expert) => loads[expert]! / counts.get(expert)!);
    for (const [gpu, indices] of pack(copyLoads, gpus / packs).entries())
      for (const index of indices) gpusOf[copies[index]!]!.push((node * gpus) / packs + gpu);
  }
  return gpusOf;
}

/** Every expert once; then, again and again, one more copy of the expert with the largest load for each of its copies. */
function replicate(experts: readonly number[], loads: Float64Array, replicas: number): number[] {
  const copies = [...experts];
  const counts = new Map(experts.map((expert) => [expert, 1]));
  const share = (expert: number) => loads[expert]! / counts.get(expert)!;
  while (copies.length < replicas) {
    const hottest = experts.reduce((best, expert) => (share(expert) > share(best) ? expert : best));
    copies.push(hottest);
    counts.set(hottest, counts.get(hottest)! + 1);
  }
  return copies;
}

/** Deals the heaviest first, each to the lightest pack that has room: every pack gets as many. Returns the indices of each pack. */
function pack(weights: Float64Array, packs: number): number[][] {
  const size = weights.length / packs;
  const packed = Array.from({ length: packs }, () => ({ indices: [] as number[], weight: 0 }));
  for (const index of [...weights.keys()].sort((a, b) => weights[b]! - weights[a]! || a - b)) {
    const open = packed.filter(({ indices }) => indices.length < size);
    const lightest = open.reduce((best, one) => (one.weight < best.weight ? one : best));
    lightest.indices.push(index);
    lightest.weight += weights[index]!;
  }
  return packed.map(({ indices }) => indices);
}

const sum = (values: Float64Array) => values.reduce((total, value) => total + value, 0);

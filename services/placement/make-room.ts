import type { Draft, ExpertIndex } from './draft.js';

/** A copy that would go from one worker to another, or to none (-1). */
interface Move {
  expert: ExpertIndex;
  from: number;
  to: number;
}

/**
 * Makes room for an expert on a worker without it, by the shortest chain of moves of other copies, each of which makes room for the one before;
 * the last goes into free memory, or is one that its expert can spare. Returns that worker; -1, with nothing moved, if there is no such chain.
 */
export function makeRoom(draft: Draft, expert: ExpertIndex, copiesMin: number): number {
  const chain = findChain(draft, expert, copiesMin);
  for (const move of chain) {
    draft.remove(move.expert, move.from);
    if (move.to >= 0) draft.add(move.expert, move.to);
  }
  return chain.at(-1)?.from ?? -1;
}

/** From the end of the chain to the move that makes room for the expert. */
function findChain(draft: Draft, expert: ExpertIndex, copiesMin: number): Move[] {
  const workers = draft.open;
  /** By worker: the move to it that made it worth a visit. */
  const moveTo = new Map<number, Move | null>();
  const queue: { worker: number; bytes: number }[] = [];
  const visit = (worker: number, bytes: number, move: Move | null) => {
    moveTo.set(worker, move);
    queue.push({ worker, bytes });
  };
  for (const worker of workers)
    if (!draft.holders(expert).includes(worker)) visit(worker, draft.bytes(expert), null);
  for (const { worker: from, bytes } of queue) {
    const helpful = draft.expertsAt(from).filter((held) => draft.free[from]! + draft.bytes(held) >= bytes);
    const spare = helpful.find((held) => draft.holders(held).length > copiesMin);
    if (spare !== undefined) return chainOf({ expert: spare, from, to: -1 }, moveTo);
    for (const held of helpful) {
      const moved = draft.bytes(held);
      for (const to of workers) {
        if (draft.holders(held).includes(to)) continue;
        const move = { expert: held, from, to };
        if (draft.free[to]! >= moved) return chainOf(move, moveTo);
        if (!moveTo.has(to)) visit(to, moved, move);
      }
    }
  }
  return [];
}

function chainOf(last: Move, moveTo: ReadonlyMap<number, Move | null>): Move[] {
  const chain = [last];
  for (let move = moveTo.get(last.from); move; move = moveTo.get(move.from)) chain.push(move);
  return chain;
}

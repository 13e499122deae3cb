/**
 * A seat is one share of the experts; there are as many as workers are expected. It keeps the name of its
 * last holder when that one dies, so that the holder finds its experts again, unless a spare took the seat.
 */
export type Seats = readonly (string | null)[];

/**
 * Static placement: the seat of each expert, in the order of the model. They are dealt in turn: within a layer no seat has
 * more than one expert above any other; and as the dealing goes on from layer to layer, the same holds for the
 * model as a whole.
 */
export function dealExperts(experts: number, seats: number): Uint32Array {
  return Uint32Array.from({ length: experts }, (_, index) => index % seats);
}

/**
 * Seats after a change of membership; `live` is in the order in which workers take seats.
 *
 * - Nobody is seated until as many workers live as there are seats.
 * - A live worker keeps its seat, and a returned one finds its old seat if it still bears its name.
 * - Live workers without a seat (spares) take over seats whose holders are dead.
 */
export function assignSeats(seats: Seats, live: readonly string[]): Seats {
  const isOpen = seats.every((holder) => holder === null);
  if (isOpen && live.length < seats.length) return seats;
  const alive = new Set(live);
  const seated = new Set(seats);
  const spares = live.filter((name) => !seated.has(name));
  return seats.map((holder) => (holder !== null && alive.has(holder) ? holder : (spares.shift() ?? holder)));
}

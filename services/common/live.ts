/**
 * What comes and goes with every batch. A Map or Set that is filled and emptied outgrows its table again and again, and V8 leaves each table pointing
 * to the next, for iterators: once one is in the old generation, all that follow it go there too, with whatever was in them
 * at the time, and stay until a full collection. These two keep nothing of what has left.
 */

/** A Map whose removed values nothing holds; keys are numbers or texts. */
export class LiveMap<Key extends number | string, Value> {
  private readonly places = new Map<Key, { value: Value | null }>();

  get size(): number {
    return this.places.size;
  }

  has(key: Key): boolean {
    return this.places.has(key);
  }

  get(key: Key): Value | undefined {
    return this.places.get(key)?.value ?? undefined;
  }

  set(key: Key, value: Value): void {
    this.delete(key);
    this.places.set(key, { value });
  }

  delete(key: Key): boolean {
    const place = this.places.get(key);
    if (place === undefined) return false;
    place.value = null;
    return this.places.delete(key);
  }

  /** In the order of coming; a copy. */
  values(): Value[] {
    return Array.from(this.places.values(), ({ value }) => value!);
  }

  clear(): void {
    for (const key of [...this.places.keys()]) this.delete(key);
  }
}

/** A Set of few, in the order of coming: to remove one takes time for those before it. */
export class LiveSet<Item> {
  private readonly items: Item[] = [];

  get size(): number {
    return this.items.length;
  }

  /** The one that came first. */
  get first(): Item | undefined {
    return this.items[0];
  }

  /** It must not be in the set. */
  add(item: Item): void {
    this.items.push(item);
  }

  delete(item: Item): boolean {
    const at = this.items.indexOf(item);
    if (at === -1) return false;
    // What shifts by itself copies nothing.
    if (at === 0) this.items.shift();
    else this.items.splice(at, 1);
    return true;
  }

  /** A copy: those that leave meanwhile are in it. */
  values(): Item[] {
    return [...this.items];
  }

  clear(): void {
    this.items.length = 0;
  }
}

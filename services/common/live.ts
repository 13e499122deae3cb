/**
 * What comes and goes with every batch. A Map or Set that is filled and emptied outgrows its table again and again, and V8 leaves each table pointing
 * to the next, for iterators: once one is in the old generation, all that follow it go there too, with whatever was in them
 * at the time, and stay until a full collection. These keep nothing of what has left.
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

interface Place<Item> {
  readonly item: Item;
  before: Place<Item> | null;
  after: Place<Item> | null;
  here: boolean;
}

/** Any number, in the order of coming: to remove one takes no time for the others. */
export class LiveList<Item> {
  private head: Place<Item> | null = null;
  private tail: Place<Item> | null = null;
  private count = 0;

  get size(): number {
    return this.count;
  }

  /** The one that came first. */
  get first(): Item | undefined {
    return this.head?.item;
  }

  /** Returns what removes it; called again, that does nothing. */
  add(item: Item): () => void {
    const place: Place<Item> = { item, before: this.tail, after: null, here: true };
    if (this.tail === null) this.head = place;
    else this.tail.after = place;
    this.tail = place;
    this.count += 1;
    return () => this.remove(place);
  }

  /** Removes the one that came first. */
  shift(): Item | undefined {
    const place = this.head;
    if (place === null) return undefined;
    this.remove(place);
    return place.item;
  }

  /** A copy: those that leave meanwhile are in it. */
  values(): Item[] {
    const items: Item[] = [];
    for (let place = this.head; place !== null; place = place.after) items.push(place.item);
    return items;
  }

  private remove(place: Place<Item>): void {
    if (!place.here) return;
    place.here = false;
    this.count -= 1;
    const { before, after } = place;
    if (before === null) this.head = after;
    else before.after = after;
    if (after === null) this.tail = before;
    else after.before = before;
    // An old place must not hold those that came after it.
    place.before = null;
    place.after = null;
  }
}

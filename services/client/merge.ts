/** The values of all iterators as they come. One value of each is asked for ahead, so that none waits for another. */
export async function* merge<T>(iterators: readonly AsyncIterator<T>[]): AsyncGenerator<T, void, void> {
  const ask = (index: number) => {
    const asked = iterators[index]!.next().then((result) => ({ index, result }));
    // A consumer that leaves early never reads this one; its rejection must not count as unhandled.
    asked.catch(() => {});
    return asked;
  };
  const pending = new Map(iterators.map((_, index) => [index, ask(index)]));
  while (pending.size > 0) {
    const { index, result } = await Promise.race(pending.values());
    if (result.done) {
      pending.delete(index);
    } else {
      pending.set(index, ask(index));
      yield result.value;
    }
  }
}

/** Lists of numbers in ascending order, each number once. */

export function insert(list: number[], value: number): void {
  let index = list.length;
  while (index > 0 && list[index - 1]! > value) index -= 1;
  list.splice(index, 0, value);
}

/** `value`: one that is in the list. */
export function remove(list: number[], value: number): void {
  list.splice(list.indexOf(value), 1);
}

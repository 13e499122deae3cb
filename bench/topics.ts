import { randomOf } from './random.js';

/** Tokens of topics, each of which prefers experts of its own. */
export interface Topics {
  experts: number;
  /** Experts of a token. */
  topK: number;
  topics: number;
  /** Zipf exponent of the topics' frequencies. */
  skew: number;
  /** Of what a token prefers, beside what its topic does: standard deviation, where that of topics is 1. */
  noise: number;
  seed: number;
}

/** [count, topK] The experts that tokens from `first` on choose: those with the highest scores. Each token's depend on seed and token alone. */
export function topicChoices(options: Topics, first: number, count: number): Uint32Array {
  const { experts, topK, topics, skew, noise, seed } = options;
  const normal = (random: () => number) =>
    Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const ofTopics = randomOf(seed);
  const preferences = Array.from({ length: topics }, () =>
    Array.from({ length: experts }, () => normal(ofTopics)),
  );
  const frequencies = preferences.map((_, topic) => (topic + 1) ** -skew);
  const total = frequencies.reduce((sum, one) => sum + one, 0);
  const choices = new Uint32Array(count * topK);
  for (let token = 0; token < count; token += 1) {
    const random = randomOf((seed + 1) * 1_000_003 + first + token);
    let rest = random() * total;
    let topic = 0;
    while (topic < topics - 1 && rest >= frequencies[topic]!) rest -= frequencies[topic++]!;
    const scores = preferences[topic]!.map((score) => score + noise * normal(random));
    const best = [...scores.keys()].sort((a, b) => scores[b]! - scores[a]! || a - b);
    choices.set(best.slice(0, topK), token * topK);
  }
  return choices;
}

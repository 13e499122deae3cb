/** A figure of one expert. */
export type ExpertFigure = readonly [layer: number, expert: number, value: number];

interface Family {
  name: string;
  type: 'counter' | 'gauge';
  help: string;
  read: () => Iterable<ExpertFigure>;
}

/**
 * Metrics with a series for each expert. A model may have tens of thousands of experts, so a path of their own serves them
 * to who asks. They are read and written out only then, and without an object for each series.
 */
export class ExpertMetrics {
  private readonly families: Family[] = [];
  private readonly labels: string;

  /** `name`: of the node, which needs no escape. */
  constructor(role: string, name: string) {
    this.labels = `role="${role}",name="${name}"`;
  }

  /** A metric `switchyard_expert_<name>`, read when it is asked for. */
  add(type: Family['type'], name: string, help: string, read: Family['read']): void {
    this.families.push({ name: `switchyard_expert_${name}`, type, help, read });
  }

  /** In the Prometheus text format. */
  text(): string {
    return this.families.map((family) => this.textOf(family)).join('');
  }

  private textOf({ name, type, help, read }: Family): string {
    let text = `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`;
    for (const [layer, expert, value] of read())
      text += `${name}{layer="${layer}",expert="${expert}",${this.labels}} ${value}\n`;
    return text;
  }
}

/** The figures of whole layers, expert after expert. */
export function* figuresOf(layers: Iterable<[layer: number, values: Float64Array]>): Generator<ExpertFigure> {
  for (const [layer, values] of layers)
    for (let expert = 0; expert < values.length; expert += 1) yield [layer, expert, values[expert]!];
}

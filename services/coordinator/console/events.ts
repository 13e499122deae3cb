import type { ClusterSummary, ConsoleEvent, ConsoleNode, ConsoleState } from './wire.js';

const eventsMax = 200;

/** What an operator's mark means for a worker. */
export const markTexts: Readonly<Record<string, string>> = {
  NO_MARK: 'may have copies again',
  CORDONED: 'is cordoned: it gets no new copies',
  DRAINED: 'is drained: its copies go elsewhere',
};

/** What happened, as seen in what is different from one look to the next. */
export class Events {
  readonly events: Record<string, ConsoleEvent> = {};
  private count = 0;
  private nodes: Readonly<Record<string, ConsoleNode>> = {};
  private cluster: ClusterSummary | null = null;

  /** `atMs`: wall time. */
  look(cluster: ClusterSummary, nodes: ConsoleState['nodes'], atMs: number): void {
    const tell = (kind: ConsoleEvent['kind'], text: string) => this.add({ at: Math.round(atMs), kind, text });
    if (cluster.leading && cluster.term !== this.cluster?.term)
      tell('term', `term ${cluster.term} of coordinator ${cluster.coordinator} began`);
    for (const [key, node] of Object.entries(nodes)) tellNode(this.nodes[key], node, tell);
    for (const [key, { role, name, state }] of Object.entries(this.nodes))
      if (nodes[key] === undefined && state !== 'DEAD') tell('left', `${role.toLowerCase()} ${name} left`);
    if (cluster.leading) tellPlacement(this.cluster, cluster, tell);
    this.nodes = nodes;
    this.cluster = cluster;
  }

  private add(event: ConsoleEvent): void {
    this.events[this.count] = event;
    delete this.events[this.count - eventsMax];
    this.count += 1;
  }
}

type Tell = (kind: ConsoleEvent['kind'], text: string) => void;

function tellNode(before: ConsoleNode | undefined, now: ConsoleNode, tell: Tell): void {
  const who = `${now.role.toLowerCase()} ${now.name}`;
  const isNew = before === undefined || before.pid !== now.pid || before.address !== now.address;
  if (isNew || (before.state === 'DEAD' && now.state !== 'DEAD'))
    tell('joined', `${who} joined from ${now.host} (${now.address})`);
  if (before?.state !== now.state) {
    if (now.state === 'DEAD' && now.reason.startsWith('left')) tell('left', `${who} ${now.reason}`);
    else if (now.state === 'DEAD') tell('died', `${who} died: ${now.reason}`);
    else if (now.state === 'DRAINING') tell('drains', `${who} is ${now.reason}`);
  }
  if (before !== undefined && before.mark !== now.mark) tell('marked', `${who} ${markTexts[now.mark]}`);
}

const moving = ({ copies }: ClusterSummary) => copies.loading + copies.planned;

function tellPlacement(before: ClusterSummary | null, now: ClusterSummary, tell: Tell): void {
  const began = moving(now) > 0 && (before === null || moving(before) === 0);
  if (began) tell('moves', `${moving(now).toLocaleString('en')} copies are to be loaded`);
  const settled = moving(now) === 0 && before !== null && moving(before) > 0;
  const another = moving(now) === 0 && now.epoch !== (before?.epoch ?? 0);
  if (settled || another)
    tell('placed', `${now.copies.serving.toLocaleString('en')} copies serve as of epoch ${now.epoch}`);
  if (before !== null && before.ready !== now.ready)
    tell(now.ready ? 'ready' : 'not-ready', now.ready ? 'the cluster is ready' : `not ready: ${now.reason}`);
}

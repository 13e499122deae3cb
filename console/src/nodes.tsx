import { useMemo, useState } from 'preact/hooks';
import type { ConsoleNode, ConsoleState } from '../../services/coordinator/console/wire.js';
import { byName, count, memory, percent, whole } from './format.js';
import type { Ask } from './operations.js';
import { Scroll } from './scroll.js';

const stateTexts: Readonly<Record<string, string>> = {
  JOINING: 'joining',
  LOADING: 'loading',
  READY: 'ready',
  DRAINING: 'leaving',
  DEAD: 'dead',
};

/** Every node: how it is and why, what it holds and does; and what an operator may do with a worker. */
export function NodesPanel({ nodes, ask }: { nodes: ConsoleState['nodes']; ask: Ask | null }) {
  const [filter, setFilter] = useState('');
  const all = useMemo(() => Object.entries(nodes).sort(([, a], [, b]) => order(a, b)), [nodes]);
  const wanted = filter.trim().toLowerCase();
  const list = all.filter(([, { name, host, state, mark }]) =>
    `${name} ${host} ${stateTexts[state]} ${mark}`.toLowerCase().includes(wanted),
  );
  return (
    <section class="panel nodes" aria-labelledby="nodes-title">
      <header>
        <h2 id="nodes-title">Nodes</h2>
        <span class="quiet">{summaryOf(all.map(([, node]) => node))}</span>
        <input
          type="search"
          placeholder="Filter"
          aria-label="Filter nodes by name, host or state"
          value={filter}
          onInput={(event) => setFilter(event.currentTarget.value)}
        />
      </header>
      <Scroll label="Table of nodes">
        <table>
          <thead>
            <tr>
              <th scope="col">Node</th>
              <th scope="col">Host</th>
              <th scope="col">State</th>
              <th scope="col" class="number">
                Copies
              </th>
              <th scope="col" class="number">
                Rows/s
              </th>
              <th scope="col" class="number">
                Queue
              </th>
              <th scope="col" class="number">
                Loop
              </th>
              <th scope="col" class="number">
                Memory
              </th>
              {ask && <th scope="col">Actions</th>}
            </tr>
          </thead>
          <tbody>
            {list.map(([key, node]) => (
              <Row key={key} node={node} ask={ask} />
            ))}
          </tbody>
        </table>
      </Scroll>
    </section>
  );
}

const order = (a: ConsoleNode, b: ConsoleNode) =>
  byName(a.role, b.role) || Number(a.state !== 'DEAD') - Number(b.state !== 'DEAD') || byName(a.name, b.name);

function summaryOf(nodes: readonly ConsoleNode[]): string {
  const counts = new Map<string, number>();
  for (const { role, state } of nodes) {
    const what = state === 'DEAD' ? 'dead' : role === 'WORKER' ? 'workers' : 'routers';
    counts.set(what, (counts.get(what) ?? 0) + 1);
  }
  return [...counts]
    .map(([what, total]) => `${whole(total)} ${total === 1 ? what.replace(/s$/, '') : what}`)
    .join(', ');
}

function Row({ node, ask }: { node: ConsoleNode; ask: Ask | null }) {
  const { name, host, role, state, mark, reason, loading, serving, draining, rowsPerSecond, rowsQueued } =
    node;
  const isWorker = role === 'WORKER';
  const marked = mark === 'DRAINED' ? 'drained' : mark === 'CORDONED' ? 'cordoned' : null;
  const moves = [
    loading > 0 && `${whole(loading)} loading`,
    draining > 0 && `${whole(draining)} draining`,
  ].filter(Boolean);
  return (
    <tr class={state === 'DEAD' ? 'gone' : ''}>
      <th scope="row">
        {name} <small>{isWorker ? node.device : 'router'}</small>
      </th>
      <td>{host}</td>
      <td class="state">
        <span class={`dot ${state.toLowerCase()}`} aria-hidden="true" />
        {stateTexts[state] ?? state}
        {marked && <span class="tag">{marked}</span>}
        {reason !== '' && <small class="reason">{reason}</small>}
      </td>
      <td class="number">
        {isWorker && whole(serving)}
        {moves.length > 0 && <small class="reason">{moves.join(', ')}</small>}
      </td>
      <td class="number">{count(rowsPerSecond)}</td>
      <td class="number">{isWorker ? count(rowsQueued) : ''}</td>
      <td class="number">{percent(node.eventLoop)}</td>
      <td class="number">{memory(node.rssBytes)}</td>
      {ask && <td class="actions">{isWorker && <Actions node={node} ask={ask} />}</td>}
    </tr>
  );
}

function Actions({ node: { name, mark, state }, ask }: { node: ConsoleNode; ask: Ask }) {
  const button = (label: string, wanted: string, text: string) => (
    <button
      type="button"
      aria-label={`${label} ${name}`}
      onClick={() =>
        ask({
          title: `${label} ${name}?`,
          text,
          label,
          operation: 'mark',
          body: { worker: name, mark: wanted },
        })
      }
    >
      {label}
    </button>
  );
  if (mark === 'DRAINED' || mark === 'CORDONED')
    return button(
      'Undrain',
      'NO_MARK',
      'It may have copies of experts again. Copies come when a plan brings them.',
    );
  if (state === 'DEAD') return null;
  return (
    <>
      {button(
        'Drain',
        'DRAINED',
        'Its copies go to other workers, as far as these have memory. It serves until they are there, and gets no new ones.',
      )}
      {button('Cordon', 'CORDONED', 'It keeps and serves the copies that it has, and gets no new ones.')}
    </>
  );
}

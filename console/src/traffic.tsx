import { useMemo } from 'preact/hooks';
import type { ConsoleLink, ConsoleState } from '../../services/coordinator/console/wire.js';
import { byName, bytes } from './format.js';
import { Scroll } from './scroll.js';

const linksShown = 60;

interface Props {
  state: ConsoleState;
}

interface Row extends ConsoleLink {
  key: string;
  sent: number;
  returned: number;
  from: string;
  to: string;
}

/** What travels between hosts, and on which links. */
export function TrafficPanel({ state }: Props) {
  const { links, traffic, nodes } = state;
  const rows = useMemo(() => rowsOf(state), [links, traffic, nodes]);
  return (
    <section class="panel traffic" aria-labelledby="traffic-title">
      <header>
        <h2 id="traffic-title">Traffic</h2>
        <span class="quiet">bytes of rows a second, out and back</span>
      </header>
      <div class="halves">
        <Hosts rows={rows} />
        <Links rows={rows} />
      </div>
    </section>
  );
}

function rowsOf({ links, traffic, nodes }: ConsoleState): Row[] {
  return Object.entries(links).map(([key, link]) => ({
    ...link,
    key,
    ...(traffic[key] ?? { sent: 0, returned: 0 }),
    from: nodes[`ROUTER/${link.router}`]?.host ?? '',
    to: nodes[`WORKER/${link.worker}`]?.host ?? '',
  }));
}

function Hosts({ rows }: { rows: readonly Row[] }) {
  const sums = new Map<string, number>();
  for (const { from, to, sent, returned } of rows) {
    const key = JSON.stringify([from, to]);
    sums.set(key, (sums.get(key) ?? 0) + sent + returned);
  }
  const most = Math.max(1, ...sums.values());
  const from = [...new Set(rows.map((row) => row.from))].sort(byName);
  const to = [...new Set(rows.map((row) => row.to))].sort(byName);
  if (rows.length === 0) return <p class="quiet">No router has told of links.</p>;
  return (
    <Scroll label="Table of hosts">
      <table class="hosts">
        <caption>Routers' hosts to workers' hosts</caption>
        <thead>
          <tr>
            <td />
            {to.map((host) => (
              <th key={host} scope="col">
                {host}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {from.map((source) => (
            <tr key={source}>
              <th scope="row">{source}</th>
              {to.map((host) => {
                const rate = sums.get(JSON.stringify([source, host]));
                return (
                  <td key={host} class="number">
                    {rate === undefined ? '' : <Amount rate={rate} most={most} />}
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </Scroll>
  );
}

function Amount({ rate, most }: { rate: number; most: number }) {
  return (
    <span class="amount">
      {bytes(rate)}
      <meter aria-label="Share of the most" min={0} max={most} value={rate} />
    </span>
  );
}

function Links({ rows }: { rows: readonly Row[] }) {
  const sorted = [...rows].sort(
    (a, b) => isOpen(a) - isOpen(b) || b.sent + b.returned - a.sent - a.returned || byName(a.key, b.key),
  );
  return (
    <Scroll label="Table of links">
      <table class="links">
        <caption>
          {rows.length === 1 ? '1 link' : `${rows.length} links`}
          {rows.length > linksShown &&
            `, the ${linksShown} with the most traffic, and those that are not open`}
        </caption>
        <thead>
          <tr>
            <th scope="col">Router</th>
            <th scope="col">Worker</th>
            <th scope="col">Way</th>
            <th scope="col" class="number">
              Out
            </th>
            <th scope="col" class="number">
              Back
            </th>
          </tr>
        </thead>
        <tbody>
          {sorted.slice(0, linksShown).map((row) => (
            <tr key={row.key}>
              <th scope="row">{row.router}</th>
              <td>{row.worker}</td>
              <td title={row.reason}>
                {isOpen(row) ? (
                  `${row.transport.toLowerCase()}, ${row.lanes}`
                ) : (
                  <span class="bad">no link: {row.reason}</span>
                )}
              </td>
              <td class="number">{bytes(row.sent)}</td>
              <td class="number">{bytes(row.returned)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Scroll>
  );
}

const isOpen = ({ transport }: ConsoleLink) => Number(transport !== 'NO_LINK');

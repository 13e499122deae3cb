import { useMemo } from 'preact/hooks';
import type { ClusterSummary, ConsoleState } from '../../services/coordinator/console/wire.js';
import { clockTime, count, duration, percent, whole } from './format.js';
import type { Ask } from './operations.js';

/** What moves, what the planner would do, and the button that has it done. */
export function PlanPanel({ cluster, ask }: { cluster: ClusterSummary; ask: Ask | null }) {
  const { copies, missing, plan, epoch, term } = cluster;
  const moving = copies.loading + copies.planned + copies.draining;
  const pays = plan !== null && plan.copiesToLoad > 0;
  return (
    <section class="panel plan" aria-labelledby="plan-title">
      <header>
        <h2 id="plan-title">Placement and plan</h2>
        <span class="quiet">
          term {term}, epoch {epoch}
        </span>
      </header>
      <dl class="facts">
        <Fact name="serving" value={whole(copies.serving)} />
        <Fact name="loading" value={whole(copies.loading)} />
        <Fact name="draining" value={whole(copies.draining)} />
        <Fact name="planned" value={whole(copies.planned)} />
        <Fact name="experts without copy" value={whole(missing)} isBad={missing > 0} />
      </dl>
      <p>
        {plan === null
          ? moving > 0
            ? 'Copies move; the next plan comes when they are there.'
            : 'No plan yet: one is made when rows have been measured for a while.'
          : pays
            ? `The last plan would load ${whole(plan.copiesToLoad)} copies in ${duration(plan.secondsToLoad)} and gain ${duration(plan.netGainSeconds)} of the busiest workers' time an hour.`
            : 'By the last plan no change of the placement pays.'}
      </p>
      {ask && (
        <button
          type="button"
          class={pays ? 'primary' : ''}
          onClick={() =>
            ask({
              title: 'Rebalance?',
              text: 'A plan is made for the present load, and copies of experts begin to go where it says, if that pays. Batches go on meanwhile.',
              label: 'Rebalance',
              operation: 'rebalance',
              body: {},
            })
          }
        >
          Rebalance
        </button>
      )}
    </section>
  );
}

function Fact({ name, value, isBad = false }: { name: string; value: string; isBad?: boolean }) {
  return (
    <div class={isBad ? 'bad' : ''}>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

const batchesShown = 12;

export function BatchesPanel({ batches, live }: { batches: ConsoleState['batches']; live: number }) {
  const list = Object.entries(batches).sort(([, a], [, b]) => b.seconds - a.seconds);
  return (
    <section class="panel batches" aria-labelledby="batches-title">
      <header>
        <h2 id="batches-title">Batches under way</h2>
        <span class="quiet">{whole(live)}</span>
      </header>
      {list.length === 0 && <p class="quiet">None at this moment.</p>}
      <ul>
        {list.slice(0, batchesShown).map(([key, { batch, router, tokens, answered, seconds }]) => (
          <li key={key}>
            <span class="name" title={batch}>
              {batch}
            </span>
            <small>
              {router}, {duration(seconds)}
            </small>
            <progress
              aria-label={`Tokens of batch ${batch} that are answered`}
              max={tokens}
              value={answered}
            />
            <small class="number">
              {percent(tokens === 0 ? 0 : answered / tokens)} of {count(tokens)}
            </small>
          </li>
        ))}
      </ul>
    </section>
  );
}

export function EventsPanel({ events }: { events: ConsoleState['events'] }) {
  const list = useMemo(() => Object.entries(events).reverse(), [events]);
  return (
    <section class="panel events" aria-labelledby="events-title">
      <header>
        <h2 id="events-title">Events</h2>
      </header>
      {list.length === 0 && <p class="quiet">Nothing has happened yet.</p>}
      <ol class="scroll" tabIndex={0} aria-label="Events, the latest first">
        {list.map(([key, { at, kind, text }]) => (
          <li key={key} class={kind}>
            <time dateTime={new Date(at).toISOString()}>{clockTime(at)}</time>
            <span>{text}</span>
          </li>
        ))}
      </ol>
    </section>
  );
}

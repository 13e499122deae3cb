import { clients } from './clients.mjs';
import { devices } from './devices.mjs';
import { experts } from './experts.mjs';
import { faults } from './faults.mjs';
import { links } from './links.mjs';
import { overview } from './overview.mjs';

/** Every dashboard under the name of its file, as Grafana takes it. */
export const dashboards = new Map(
  Object.entries({ overview, experts, links, faults, clients, devices }).map(([name, dashboard]) => [
    `${name}.json`,
    `${JSON.stringify(dashboard, null, 2)}\n`,
  ]),
);

/** Writes the dashboards of deploy/grafana/source as the JSON that Grafana reads: node scripts/dashboards.mjs */
import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { dashboards } from '../deploy/grafana/source/index.mjs';

const folder = join(dirname(dirname(fileURLToPath(import.meta.url))), 'deploy', 'grafana', 'dashboards');
for (const [file, text] of dashboards) writeFileSync(join(folder, file), text);

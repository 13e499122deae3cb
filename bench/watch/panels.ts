import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../../native/locate.js';

export interface PanelQuery {
  dashboard: string;
  panel: string;
  /** With variables replaced: all clusters, and a range for rates. */
  expression: string;
}

interface Panel {
  title: string;
  targets: { expr: string }[];
}

/** Panels that have data only where workers have CUDA devices begin so. */
const cudaPrefix = 'CUDA: ';

/** Every query of the panels of every dashboard. `range`: for rates; `cuda`: whether workers have CUDA devices. */
export function panelQueries({ range, cuda }: { range: string; cuda: boolean }): PanelQuery[] {
  const folder = join(packageRoot(), 'deploy', 'grafana', 'dashboards');
  return readdirSync(folder).flatMap((file) => {
    const { title: dashboard, panels } = JSON.parse(readFileSync(join(folder, file), 'utf8')) as {
      title: string;
      panels: Panel[];
    };
    return panels
      .filter(({ title }) => cuda || !title.startsWith(cudaPrefix))
      .flatMap(({ title: panel, targets }) =>
        targets.map(({ expr }) => ({
          dashboard,
          panel,
          expression: expr.replaceAll('$__rate_interval', range).replaceAll(/\$(namespace|job)\b/g, '.*'),
        })),
      );
  });
}

import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from '@jest/globals';

const folder = 'deploy/grafana/dashboards';

interface Panel {
  title: string;
  description: string;
  gridPos: { x: number; w: number };
}

test('the dashboards of deploy/grafana are those that node scripts/dashboards.mjs writes', async () => {
  // @ts-expect-error It is JavaScript, which nothing but this and the script uses.
  const { dashboards } = await import('../../deploy/grafana/source/index.mjs');
  expect(readdirSync(folder).sort()).toEqual([...dashboards.keys()].sort());
  for (const [file, text] of dashboards as Map<string, string>)
    expect(readFileSync(`${folder}/${file}`, 'utf8')).toBe(text);
});

test.each(readdirSync(folder))(
  '%s says of each panel what it shows, and none is wider than the page',
  (file) => {
    const { panels } = JSON.parse(readFileSync(`${folder}/${file}`, 'utf8')) as { panels: Panel[] };
    for (const { title, description, gridPos } of panels) {
      expect({ title, told: description.endsWith('.') }).toEqual({ title, told: true });
      expect(gridPos.x + gridPos.w).toBeLessThanOrEqual(24);
    }
  },
);

import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import { parse } from 'yaml';

interface Rule {
  record?: string;
  alert?: string;
  labels?: { severity: string };
  annotations?: Record<string, string>;
}
interface AlertTest {
  alertname: string;
  exp_alerts: unknown[];
}

const folder = 'deploy/prometheus';
const pages = 'docs/runbooks';
const { groups } = parse(readFileSync(`${folder}/rules.yml`, 'utf8')) as { groups: { rules: Rule[] }[] };
const { tests } = parse(readFileSync(`${folder}/rules.test.yml`, 'utf8')) as {
  tests: { alert_rule_test: AlertTest[] }[];
};
const rules = groups.flatMap((group) => group.rules);
const alerts = rules.filter(({ alert }) => alert !== undefined);
const names = alerts.map(({ alert }) => alert!);

describe('alerts', () => {
  test('have a page each, with meaning, impact, diagnosis and mitigation, and no page is without an alert', () => {
    expect(readdirSync(pages).sort()).toEqual(names.map((name) => `${name}.md`).sort());
    for (const name of names) {
      const lines = readFileSync(`${pages}/${name}.md`, 'utf8').split('\n');
      expect(lines.filter((line) => line.startsWith('#'))).toEqual([
        `# ${name}`,
        '## Meaning',
        '## Impact',
        '## Diagnosis',
        '## Mitigation',
      ]);
    }
  });

  test.each(alerts)('$alert says how bad it is, what it is, and where its page is', (rule) => {
    expect(['critical', 'warning']).toContain(rule.labels?.severity);
    expect(Object.keys(rule.annotations!)).toEqual(['summary', 'description', 'runbook_url']);
    expect(rule.annotations!.runbook_url).toBe(`${pages}/${rule.alert}.md`);
  });

  test('have tests in which they fire, and tests in which they do not', () => {
    const tried = tests.flatMap((one) => one.alert_rule_test);
    for (const name of names) {
      const outcomes = tried
        .filter(({ alertname }) => alertname === name)
        .map(({ exp_alerts }) => exp_alerts.length > 0);
      expect({ name, outcomes: [...new Set(outcomes)].sort() }).toEqual({ name, outcomes: [false, true] });
    }
  });
});

test('recorded series are named level:metric:operations', () => {
  for (const { record } of rules.filter((rule) => rule.record !== undefined))
    expect(record).toMatch(/^[a-z_]+:switchyard_[a-z_]+:[a-z0-9_]+$/);
});

describe('promtool', () => {
  const present = spawnSync('promtool', ['--version']).error === undefined;
  if (!present)
    process.stderr.write('\n*** NOT CHECKED: promtool is not in PATH, so the rules are not tried. ***\n\n');
  (present ? test : test.skip).each([
    ['check', 'rules.yml'],
    ['test', 'rules.test.yml'],
  ])('%s rules %s', (command, file) => {
    const { status, stdout, stderr } = spawnSync('promtool', [command, 'rules', file], {
      cwd: folder,
      encoding: 'utf8',
    });
    expect({ status, output: status === 0 ? '' : `${stdout}${stderr}` }).toEqual({ status: 0, output: '' });
  });
});

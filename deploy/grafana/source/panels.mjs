import { BarAlignment, BigValueGraphMode, GraphDrawStyle } from '@grafana/grafana-foundation-sdk/common';
import {
  DashboardBuilder,
  DashboardLinkBuilder,
  DatasourceVariableBuilder,
  FieldColorBuilder,
  FieldColorModeId,
  QueryVariableBuilder,
  ThresholdsConfigBuilder,
  ThresholdsMode,
  VariableRefresh,
} from '@grafana/grafana-foundation-sdk/dashboard';
import { DataqueryBuilder, PromQueryFormat } from '@grafana/grafana-foundation-sdk/prometheus';
import { PanelBuilder as StatBuilder } from '@grafana/grafana-foundation-sdk/stat';
import { PanelBuilder as TableBuilder } from '@grafana/grafana-foundation-sdk/table';
import { PanelBuilder as TimeseriesBuilder } from '@grafana/grafana-foundation-sdk/timeseries';

const datasource = { type: 'prometheus', uid: '$datasource' };
const tag = 'switchyard';
const columns = 24;

/** The cluster that is chosen: to be put between the braces of a selector. */
export const cluster = 'namespace=~"$namespace", job=~"$job"';

/** [expression, legend] pairs as queries of a panel. */
function queries(panel, targets, { instant = false } = {}) {
  for (const [index, [expression, legend = '']] of targets.entries()) {
    const query = new DataqueryBuilder()
      .refId(String.fromCharCode('A'.charCodeAt(0) + index))
      .expr(expression)
      .legendFormat(legend);
    panel.withTarget(instant ? query.instant().format(PromQueryFormat.Table) : query);
  }
  return panel;
}

const placed = (panel, title, description, { width, height }) =>
  panel.title(title).description(description).datasource(datasource).span(width).height(height);

const levels = (steps) =>
  new ThresholdsConfigBuilder()
    .mode(ThresholdsMode.Absolute)
    .steps(steps.map(([value, color]) => ({ value, color })));

/** Something over time. `max`: the end of the axis, if there is one. */
export function timeseries({ title, description, unit, targets, width = 12, max }) {
  const panel = placed(new TimeseriesBuilder(), title, description, { width, height: 8 })
    .unit(unit)
    .min(0)
    .drawStyle(GraphDrawStyle.Line)
    .barAlignment(BarAlignment.Center)
    .fillOpacity(10);
  if (max !== undefined) panel.max(max);
  return queries(panel, targets);
}

/** One figure. `steps`: [value, color] from which on it has a colour. */
export function stat({ title, description, unit, targets, steps = [[null, 'green']], width = 4 }) {
  const panel = placed(new StatBuilder(), title, description, { width, height: 4 })
    .unit(unit)
    .thresholds(levels(steps))
    .graphMode(BigValueGraphMode.Area);
  return queries(panel, targets);
}

/** The series of now, a row each. `hidden`: labels that are not shown. */
export function table({ title, description, targets, hidden = [], width = 24, height = 8 }) {
  const panel = placed(new TableBuilder(), title, description, { width, height });
  const left = ['Time', '__name__', 'instance', 'job', 'namespace', 'Value', ...hidden];
  panel.withTransformation({
    id: 'organize',
    options: { excludeByName: Object.fromEntries(left.map((name) => [name, true])) },
  });
  return queries(panel, targets, { instant: true });
}

/** A figure by two labels as it is now: a heat map whose rows and columns are theirs. */
export function matrix({ title, description, unit, expression, row, column, width = 24, height = 16 }) {
  const panel = placed(new TableBuilder(), title, description, { width, height })
    .unit(unit)
    .colorScheme(new FieldColorBuilder().mode(FieldColorModeId.ContinuousBlYlRd))
    .overrideByRegexp(`/^(?!${row}).*/`, [
      { id: 'custom.cellOptions', value: { type: 'color-background', mode: 'gradient' } },
    ])
    .withTransformation({
      id: 'groupingToMatrix',
      options: { rowField: row, columnField: column, valueField: 'Value' },
    });
  return queries(panel, [[expression]], { instant: true });
}

/** A dashboard about one thing, with panels from left to right. */
export function dashboard({ uid, title, description, panels }) {
  const variable = (name, label, text) =>
    new QueryVariableBuilder(name)
      .label(label)
      .datasource(datasource)
      .query(text)
      .refresh(VariableRefresh.OnTimeRangeChanged)
      .includeAll(true)
      .allValue('.*')
      .current({ text: 'All', value: '$__all' });
  const builder = new DashboardBuilder(title)
    .uid(uid)
    .description(description)
    .tags([tag])
    .readonly()
    .refresh('10s')
    .time({ from: 'now-30m', to: 'now' })
    .timezone('browser')
    .withVariable(new DatasourceVariableBuilder('datasource').label('Prometheus').type('prometheus'))
    .withVariable(variable('namespace', 'Namespace', 'label_values(switchyard_build_info, namespace)'))
    .withVariable(variable('job', 'Cluster', 'label_values(switchyard_build_info, job)'))
    .link(
      new DashboardLinkBuilder('Switchyard').type('dashboards').tags([tag]).asDropdown(true).keepTime(true),
    );
  for (const panel of panels) builder.withPanel(panel);
  return builder.build();
}

export const half = columns / 2;
export const third = columns / 3;

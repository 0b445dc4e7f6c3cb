// SPDX-License-Identifier: Apache-2.0
// Draws one dashboard's JSON with Grafana's own components (@grafana/ui) and the answers of a real Prometheus.
// No Grafana server: panels, options, overrides and transformations are those of the file. Heat maps have no
// component there, and a plain grid stands for them; log lines come from the event log itself, in Loki's place.
import type { DataFrame, GrafanaTheme2 } from '@grafana/data';
import React from 'react';
import { createRoot } from 'react-dom/client';
import { of, lastValueFrom } from 'rxjs';

// Required, not imported: the packages' ES modules take the default export of CommonJS ones for granted.
const {
  applyFieldOverrides, createTheme, dateTime, FieldConfigOptionsRegistry, FieldType, getFieldDisplayValues,
  identityOverrideProcessor, standardTransformers, toDataFrame, VizOrientation,
} = require('@grafana/data');
const { BarGauge, BigValue, GlobalStyles, PortalContainer, Table, ThemeContext, TimeSeries } = require('@grafana/ui');

const asked = new URLSearchParams(location.search);
const PROMETHEUS = asked.get('prometheus')!;
const MINUTES = Number(asked.get('minutes'));
const [COLUMN, ROW, GAP] = [66, 34, 8];
const END = Math.floor(Date.now() / 15000) * 15;
const STEP = 15;
const theme: GrafanaTheme2 = createTheme({ colors: { mode: 'light' } });

function filledIn(text: string): string {
  const values: Record<string, string> = {
    $pool: '.*', $node: asked.get('node')!, $__rate_interval: '1m', $__range: `${MINUTES}m`,
  };
  return Object.entries(values).reduce((all, [name, value]) => all.split(name).join(value), text);
}

async function answer(target: any): Promise<any[]> {
  const query = encodeURIComponent(filledIn(target.expr));
  const span = `start=${END - MINUTES * 60}&end=${END}&step=${STEP}`;
  const url = target.instant ? `query?query=${query}` : `query_range?query=${query}&${span}`;
  const body = await (await fetch(`${PROMETHEUS}/api/v1/${url}`)).json();
  return body.data.result;
}

function legend(target: any, labels: Record<string, string>): string {
  const format = target.legendFormat === '__auto' ? '' : target.legendFormat;
  if (format) {
    return format.replace(/\{\{(\w+)\}\}/g, (_: string, name: string) => labels[name] ?? '');
  }
  return Object.values(labels).join(' ') || target.expr;
}

function series(target: any, result: any[]): DataFrame[] {
  return result.map(({ metric, value, values }) => {
    const points: Array<[number, string]> = values ?? [value];
    // A moment without a value is a gap, not a line across it.
    const at = new Map(points.map(([time, text]) => [time, Number(text)]));
    const first = target.instant ? points[0][0] : END - MINUTES * 60;
    const times = target.instant ? [first] : Array.from({ length: MINUTES * 60 / STEP + 1 }, (_, n) => first + n * STEP);
    return toDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: times.map((time) => time * 1000), config: {} },
        {
          name: 'Value', type: FieldType.number, labels: metric, values: times.map((time) => at.get(time) ?? null),
          config: { displayNameFromDS: legend(target, metric) },
        },
      ],
    });
  });
}

function rows(result: any[]): DataFrame[] {
  const labels = [...new Set(result.flatMap(({ metric }) => Object.keys(metric)))];
  return [toDataFrame({
    fields: [
      { name: 'Time', type: FieldType.time, values: result.map(({ value }) => value[0] * 1000) },
      ...labels.map((name) => ({ name, type: FieldType.string, values: result.map(({ metric }) => metric[name] ?? '') })),
      { name: 'Value', type: FieldType.number, values: result.map(({ value }) => Number(value[1])) },
    ],
  })];
}

function registry() {
  const paths = ['unit', 'decimals', 'min', 'max', 'color', 'thresholds', 'mappings', 'links', 'displayName'];
  const custom = ['axisPlacement', 'width', 'cellOptions'].map((name) => `custom.${name}`);
  const items = [...paths, ...custom].map((id) => ({
    id, path: id.replace('custom.', ''), name: id, isCustom: id.startsWith('custom.'), settings: {},
    process: identityOverrideProcessor, override: () => null, editor: () => null, shouldApply: () => true,
  }));
  return new FieldConfigOptionsRegistry(() => items as any);
}

// What Loki would do with the panel's query: the node's refusals, each by the panel's own template.
async function logLines(panel: any): Promise<string[]> {
  const template = /line_format `(.*)`/.exec(panel.targets[0].expr)![1];
  const text = await (await fetch('events.json')).text();
  const events = text.split('\n').filter((line) => line.startsWith('{"event":"module_load"')).map((line) => JSON.parse(line));
  const refused = events.filter(({ node, verdict }) => node === asked.get('node') && verdict !== 'allow').reverse().slice(0, 8);
  return refused.map((event) => `${event.time.slice(11, 19)}  ` + template.replace(/\{\{\.(\w+)\}\}/g, (_: string, key: string) => {
    const [first, ...rest] = key.split('_');
    return String(event[key] ?? event[first]?.[rest.join('_')] ?? '');
  }));
}

async function frames(panel: any): Promise<DataFrame[]> {
  const results = await Promise.all(panel.targets.map(answer));
  let data = panel.targets.flatMap((target: any, n: number) =>
    target.format === 'table' ? rows(results[n]) : series(target, results[n]));
  for (const { id, options } of panel.transformations) {
    const transformer = Object.values(standardTransformers).find((one: any) => one.id === id) as any;
    data = await lastValueFrom(of(data).pipe(transformer.operator(options, { interpolate: (text: string) => text })));
  }
  data = data.map((frame: DataFrame) => ({
    ...frame,
    fields: frame.fields.map((field) => ({
      ...field, config: { ...field.config, custom: { ...panel.fieldConfig.defaults.custom } },
    })),
  }));
  return applyFieldOverrides({
    data, fieldConfig: panel.fieldConfig, replaceVariables: (text: string) => text, theme, fieldConfigRegistry: registry(),
  });
}

function Values({ panel, data, width, height }: any) {
  const values = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: (text: string) => text,
    theme, data, timeZone: 'utc',
  });
  if (panel.type === 'stat') {
    const { colorMode, graphMode, textMode, justifyMode } = panel.options;
    return <BigValue {...{ width, height, theme, colorMode, graphMode, textMode, justifyMode }} value={values[0].display} />;
  }
  const each = Math.min(34, (height - 4) / values.length);
  return <>{values.map(({ display, field }, n) => (
    <div key={n} style={{ height: each }}>
      <BarGauge value={display} field={field} theme={theme} width={width} height={each - 4} itemSpacing={4}
        displayMode={panel.options.displayMode} orientation={VizOrientation.Horizontal}
        showUnfilled={panel.options.showUnfilled} text={{ titleSize: 13, valueSize: 14 }} />
    </div>))}</>;
}

function Heat({ data, width, height }: any) {
  const sorted = [...data].sort((a, b) => Number(a.fields[1].labels.le.replace('+Inf', 'Infinity')) - Number(b.fields[1].labels.le.replace('+Inf', 'Infinity')));
  const counts = sorted.map((frame, n) => frame.fields[1].values.map((value: number, at: number) =>
    Math.max(0, (value ?? 0) - (n ? sorted[n - 1].fields[1].values[at] ?? 0 : 0))));
  const most = Math.max(...counts.flat(), 1e-9);
  const [left, tall] = [64, height / counts.length];
  const wide = (width - left) / counts[0].length;
  return <svg width={width} height={height} style={{ font: '11px sans-serif' }}>{counts.map((row, n) => {
    const y = height - (n + 1) * tall;
    return <g key={n}><text x={left - 6} y={y + tall / 2 + 4} textAnchor="end">{legendOf(sorted[n].fields[1].labels.le)}</text>
      {row.map((count: number, at: number) => count > 1e-6 && <rect key={at} x={left + at * wide} y={y} width={wide - 1}
        height={tall - 1} fill="#E55400" opacity={0.25 + 0.75 * Math.sqrt(count / most)} />)}</g>;
  })}</svg>;
}

function legendOf(le: string): string {
  const seconds = Number(le);
  return le === '+Inf' ? 'more' : seconds < 0.001 ? `${Math.round(seconds * 1e6)} µs` : seconds < 1 ? `${Math.round(seconds * 1e3)} ms` : `${seconds.toFixed(0)} s`;
}

function Body({ panel, data, width, height }: any) {
  if (panel.type === 'logs') {
    return <pre style={{ font: '12px/1.7 monospace', margin: 0 }}>{data.join('\n')}</pre>;
  }
  if (!data.some((frame: DataFrame) => frame.length)) {
    return <p style={{ color: '#666' }}>Nothing.</p>;
  }
  switch (panel.type) {
    case 'table':
      return <Table data={data[0]} width={width} height={height} ariaLabel={panel.title}
        initialSortBy={panel.options.sortBy.filter((one: any) => one.displayName)} />;
    case 'timeseries': {
      const timeRange = { from: dateTime((END - MINUTES * 60) * 1000), to: dateTime(END * 1000), raw: { from: 'now-1h', to: 'now' } };
      return <TimeSeries frames={data} width={width} height={height} timeRange={timeRange} timeZone="utc"
        legend={{ ...panel.options.legend, calcs: [] }} options={panel.options} />;
    }
    case 'heatmap':
      return <Heat {...{ data, width, height }} />;
    default:
      return <Values {...{ panel, data, width, height }} />;
  }
}

function Panel({ panel, data }: any) {
  const { x, y, w, h } = panel.gridPos;
  const [width, height] = [w * COLUMN - GAP, h * ROW - GAP];
  return <section style={{
    position: 'absolute', left: x * COLUMN, top: y * ROW + 48, width, height, background: '#fff', border: '1px solid #ddd',
    borderRadius: 3, overflow: 'hidden', boxSizing: 'border-box',
  }}>
    <h2 style={{ font: '600 14px sans-serif', margin: '6px 8px', height: 18 }}>{panel.title}</h2>
    <div style={{ position: 'absolute', left: 8, top: 30, width: width - 18, height: height - 38 }}>
      <Body {...{ panel, data }} width={width - 18} height={height - 40} />
    </div>
  </section>;
}

async function main() {
  const made = await (await fetch(asked.get('dashboard')!)).json();
  const data = await Promise.all(made.panels.map((panel: any) => panel.type === 'logs' ? logLines(panel) : frames(panel)));
  createRoot(document.getElementById('root')!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <h1 style={{ font: '600 20px sans-serif', margin: '10px 8px' }}>
        {made.title}{made.uid.endsWith('node') ? `: ${asked.get('node')}` : ''}
      </h1>
      {made.panels.map((panel: any, n: number) => <Panel key={panel.id} panel={panel} data={data[n]} />)}
      <PortalContainer />
    </ThemeContext.Provider>);
}

main().catch((error) => { document.body.textContent = `failed: ${error.stack}`; });

// Samples of one object: the last minutes at the rate at which they are taken, or hours of them; one chart a unit.
import { useEffect, useMemo, useState } from 'preact/hooks';
import { html } from '../html.js';
import { events } from '../stream.js';
import { route, setQuery } from '../state.js';
import { Command } from '../ui/parts.js';
import Chart from '../ui/chart.js';
import { readAll } from './stream.js';

const SPANS = { '2m': [120, 0.2], '10m': [600, 1], '1h': [3600, 1], '1d': [86400, 10], '30d': [2592000, 300] };

export function Metrics({ row, kind }) {
  const span = SPANS[route.value.query.span] ? route.value.query.span : '2m';
  const [length, granularity] = SPANS[span];
  const isLive = length <= 600;
  const [series, setSeries] = useState(null);
  const [state, setState] = useState('');
  useEffect(() => {
    let isOver = false;
    let timer = 0;
    let held = [];
    setSeries(null);
    setState('');
    const read = async (seconds) => {
      try {
        const answer = JSON.parse(await readAll(row, 'metrics', { time_range: seconds, granularity }));
        if (isOver) return;
        held = join(held, answer.series, answer.until - length);
        setSeries(held);
        setState('');
      } catch (error) { if (!isOver) setState(`${error.message}${error.hint ? `; ${error.hint}` : ''}`); }
      if (!isOver) timer = setTimeout(() => read(isLive && held.length ? Math.max(4, granularity * 4) : length), isLive ? 1000 : 15000);
    };
    read(length);
    return () => { isOver = true; clearTimeout(timer); };
  }, [row.uid, span]);
  const charts = useMemo(() => byUnit(series ?? []), [series]);
  const marks = events.value.map((event) => ({ at: event.at, words: event.reason }));
  return html`<div class="row" role="group" aria-label="Span of time">${Object.keys(SPANS).map((each) => html`
      <button key=${each} type="button" class="chip" aria-pressed=${each === span} onClick=${() => setQuery({ span: each })}>${each}</button>`)}
      <span class="soft" role="status">${state || (series ? '' : 'Reading samples…')}</span></div>
    ${series && !charts.length && html`<p class="soft">No samples in this span: the guest did not run, or its node’s agent did not.</p>`}
    <div class="panels">${charts.map(({ title, of }) => html`<div class="panel" key=${title}><${Chart} title=${title} series=${of} marks=${marks} /></div>`)}</div>
    <${Command} words=${`weft ${kind.name} metrics ${row.name}${row.project && row.project !== 'default' ? ` -p ${row.project}` : ''} --time-range ${span} --granularity ${granularity}s`} />`;
}

function join(held, fresh, oldest) {
  const known = new Map(held.map((each) => [each.name, each]));
  return fresh.map((each) => {
    const first = each.points[0]?.[0] ?? Infinity;
    const before = (known.get(each.name)?.points ?? []).filter(([at]) => at < first && at >= oldest);
    return { ...each, points: [...before, ...each.points] };
  });
}

// Series that share the first part of their name and their unit are one chart: nic0.received and nic0.sent.
function byUnit(series) {
  const groups = new Map();
  for (const each of series) {
    const head = each.name.includes('.') ? each.name.split('.')[0] : each.name === 'steal' ? 'cpu' : each.name;
    const key = `${head} (${each.unit})`;
    groups.set(key, [...(groups.get(key) ?? []), each]);
  }
  return [...groups].map(([title, of]) => ({ title, of }));
}

// Samples of one object: the last minutes at the rate at which they are taken, or hours of them; one chart a unit.
import { useEffect, useMemo, useState } from 'preact/hooks';
import { html } from '../html.js';
import { ownEvents } from '../stream.js';
import { route, setQuery } from '../state.js';
import { Command } from '../ui/parts.js';
import Chart from '../ui/chart.js';
import { connect, lost, readStream } from './stream.js';

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
    let socket = null;
    let held = [];
    setSeries(null);
    setState('');
    const say = (error) => { if (!isOver) setState(`${error.message}${error.hint ? `; ${error.hint}` : ''}`); };
    const take = (text) => {
      const answer = JSON.parse(text);
      held = join(held, answer.series, answer.until - length);
      setSeries(held);
      setState('');
    };
    const follow = async () => { // a line for each second with what is new; the first has the whole span
      try {
        socket = await connect(row, 'metrics', { time_range: length, granularity, watch: true });
        if (isOver) { socket.close(); return; }
        let rest = '';
        const decoder = new TextDecoder();
        socket.onmessage = (event) => {
          const lines = (rest + decoder.decode(event.data, { stream: true })).split('\n');
          rest = lines.pop();
          lines.filter(Boolean).forEach(take);
        };
        socket.onclose = (event) => { say(new Error(lost(event))); if (!isOver) timer = setTimeout(follow, 2000); };
      } catch (error) { say(error); if (!isOver) timer = setTimeout(follow, 5000); }
    };
    const read = async () => {
      try { const text = await readStream(row, 'metrics', { time_range: length, granularity }); if (!isOver) take(text); } catch (error) { say(error); }
      if (!isOver) timer = setTimeout(read, 15000);
    };
    if (isLive) follow(); else read();
    return () => { isOver = true; clearTimeout(timer); socket?.close(); };
  }, [row.uid, span]);
  const charts = useMemo(() => byUnit(series ?? []), [series]);
  const marks = ownEvents.value.map((event) => ({ at: event.at, words: event.reason }));
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

// Series that share the beginning of their name and their unit are one chart: nic0.received and nic0.sent.
function byUnit(series) {
  const groups = new Map();
  for (const each of series) {
    const parts = each.name.split('.');
    const head = parts.length > 2 ? parts.slice(0, -1).join('.') : /^(steal|throttled)$/.test(each.name) ? 'cpu' : parts[0];
    const key = `${head} (${each.unit})`;
    groups.set(key, [...(groups.get(key) ?? []), each]);
  }
  return [...groups].map(([title, of]) => ({ title, of }));
}

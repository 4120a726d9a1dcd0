// What waits and why, in the scheduler's order; and the calendar: who has which node, and when.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { ask, get, query } from '../api.js';
import { age, clock, moment } from '../format.js';
import { returns, summary } from '../stream.js';
import { kinds, may, now, placesOf, project, toObject } from '../state.js';
import { Command, Empty, ProblemBox } from '../ui/parts.js';

export function Queue() {
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  const waiting = summary.value?.queue?.waiting;
  const everywhere = !project.value && may('report:create', '');
  const where = placesOf('recommendation:create')[0] || 'default';
  useEffect(() => {
    let isOver = false;
    const asked = everywhere ? ask(kinds.value.get('report'), '', { subject: 'queue' }) : ask(kinds.value.get('recommendation'), where, { subject: 'queue' });
    asked.then((status) => { if (!isOver) { setAnswer(status); setError(null); } }, (problem) => { if (!isOver) setError(problem); });
    return () => { isOver = true; };
  }, [project.value, waiting, returns.value]);
  const isPassed = answer?.queue.some((each) => each.passed_by);
  return html`<h1>Queue and calendar</h1>
    <section><h2>Queue${answer ? ` (${answer.queued})` : ''}</h2><${ProblemBox} error=${error} />
      ${!answer && !error && html`<p class="soft">Asking the scheduler…</p>`}
      ${answer && !answer.queue.length && html`<${Empty} words="Nothing waits." />`}
      ${answer?.queue.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Queue"><table><thead><tr><th class="number">PLACE</th><th>WORKLOAD</th><th>PROJECT</th><th class="number">PRIORITY</th><th class="number">WAITING</th><th>STARTS</th><th>HELD BY</th>${isPassed && html`<th>PASSED BY</th>`}</tr></thead>
        <tbody>${answer.queue.map((each) => { const [kind, name] = each.workload.split('/'); return html`<tr key=${`${each.project}/${each.workload}`}><td class="number">${each.place ?? '–'}</td><td><a class="mono" href=${toObject({ kind, project: each.project, name }, 'why')}>${each.workload}</a></td>
          <td>${each.project}</td><td class="number">${each.priority}</td><td class="number">${age(each.waiting_seconds)}</td><td>${each.expected_start ? moment(each.expected_start) : 'unknown'} ${each.confidence === 'low' ? '(guessed)' : ''}</td>
          <td style=${{ maxWidth: 'none' }}>${each.held_by.message || each.held_by.reason}</td>${isPassed && html`<td style=${{ maxWidth: 'none' }}>${each.passed_by || '–'}</td>`}</tr>`; })}</tbody></table></div>`}
      <${Command} words=${`weft queue ${everywhere ? '--all-projects' : `-p ${where}`}`} /></section>
    <${Calendar} />`;
}

const HOLDING = new Set(['Scheduled', 'Preparing', 'Active', 'Suspended']);

function Calendar() {
  const [entries, setEntries] = useState(null);
  const [error, setError] = useState(null);
  const waiting = JSON.stringify(summary.value?.phases ?? {});
  useEffect(() => {
    let isOver = false;
    Promise.all(['vm', 'container', 'reservation'].map((name) => list(kinds.value.get(name)))).then(([vms, containers, reservations]) => {
      if (!isOver) setEntries([...placed([...vms, ...containers]), ...kept(reservations)]);
    }, (problem) => { if (!isOver) setError(problem); });
    return () => { isOver = true; };
  }, [project.value, waiting, returns.value]);
  const leased = (entries ?? []).filter((each) => each.end).sort((a, b) => a.node.localeCompare(b.node) || a.start - b.start).slice(0, 200);
  return html`<section><h2>Calendar of leases and reservations</h2><${ProblemBox} error=${error} />
    ${entries && !leased.length && html`<${Empty} words="No lease and no reservation is accepted." command="weft vm create lab --image tiny --lease reservation --start 14:00 --duration 1h" />`}
    ${leased.length > 0 && html`<${Lanes} entries=${leased} />`}
    <${Command} words="weft calendar" /></section>`;
}

async function list(kind) {
  const places = kind ? placesOf(kind.list) : [];
  const found = await Promise.all(places.map((where) => get(`${where ? `/v1/projects/${encodeURIComponent(where)}` : '/v1'}/${kind.plural}?${query({ limit: 1000 })}`)));
  return found.flatMap((each) => each.items);
}
const placed = (objects) => objects.filter(({ status }) => status?.node && !status.ended && status.lease && HOLDING.has(status.lease.state))
  .map((each) => ({ what: `${each.kind}/${each.name}`, kind: each.kind, name: each.name, project: each.project, node: each.status.node, start: each.status.lease.start, end: each.status.lease.end, state: each.status.lease.state }));
const kept = (objects) => objects.filter(({ status }) => ['Scheduled', 'Active'].includes(status?.state))
  .flatMap((each) => Object.keys(each.status.slots ?? {}).map((node) => ({ what: `reservation/${each.name}`, kind: 'reservation', name: each.name, project: each.project, node, start: each.status.start, end: each.status.end, state: each.status.state })));

function Lanes({ entries }) {
  const first = Math.min(now.value, ...entries.map((each) => Math.max(each.start, now.value - 3600)));
  const last = Math.max(...entries.map((each) => each.end), first + 600);
  const at = (time) => `${(100 * (Math.min(Math.max(time, first), last) - first)) / (last - first)}%`;
  const long = last - first > 86400;
  return html`<div class="scroll whole" tabindex="0" role="region" aria-label="Calendar"><table><thead><tr><th>NODE</th><th>LEASE</th><th>PROJECT</th><th style=${{ width: '50%' }}>${long ? moment(first) : clock(first)} → ${long ? moment(last) : clock(last)}</th><th>FROM</th><th>UNTIL</th></tr></thead>
    <tbody>${entries.map((each) => html`<tr key=${`${each.node}/${each.project}/${each.what}`}><td class="mono">${each.node}</td><td><a class="mono" href=${toObject(each)}>${each.what}</a></td><td>${each.project}</td>
      <td><div class="bar" style=${{ height: '12px' }} role="img" aria-label=${`${each.state}, ${moment(each.start)} to ${moment(each.end)}`}><i style=${{ left: at(each.start), width: `calc(${at(each.end)} - ${at(each.start)})`, background: each.state === 'Active' ? 'var(--running)' : each.state === 'Suspended' ? 'var(--degraded)' : 'var(--changing)' }}></i>
        <i style=${{ left: at(now.value), width: '2px', background: 'var(--failed)' }}></i></div></td>
      <td>${moment(each.start)}</td><td>${moment(each.end)}</td></tr>`)}</tbody></table></div>`;
}

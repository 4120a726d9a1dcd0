// Alerts: what fires or soon will, who is notified, and the tables of rules, silences and receivers; below, all that is wrong.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { pathOf, post, request } from '../api.js';
import { moment, number } from '../format.js';
import { readAll } from '../read.js';
import { health, kinds, may, notice, noticeOf, now, placesOf, project, route } from '../state.js';
import { events, summary } from '../stream.js';
import { KindChips } from '../ui/chips.js';
import { CreateButton } from '../ui/create.js';
import { EventList } from '../ui/events.js';
import { Age, Name, State } from '../ui/parts.js';
import { Table } from '../ui/table.js';
import { ProblemList } from '../ui/problems.js';

const NAMES = ['alertrule', 'silence', 'receiver'];
const EMPTY = {
  alertrule: ['No rules yet.', 'weft alertrule create down --expr "weft_node_up == 0" --for 1m'],
  silence: ['Nothing is silenced.', 'weft silence create quiet --rule NAME --until TIME'],
  receiver: ['Nobody is notified yet.', 'weft receiver create hook --type webhook --url https://HOST/PATH'],
};
const SEVERITIES = ['critical', 'warning', 'info'];
const COLOUR = { critical: 'failed', warning: 'degraded', info: 'unknown' };
const SHOWN = 50; // alerts
const SILENT_SECONDS = 7200;
const MOST_LABELS = 8; // of a silence

export function Alerts() {
  const known = NAMES.filter((name) => kinds.value.has(name));
  const name = known.includes(route.value.query.kind) ? route.value.query.kind : 'alertrule';
  return html`<div class="row"><h1 class="grow">Alerts</h1><${CreateButton} names=${[name]} /></div>
    <${Current} />
    <${KindChips} names=${known} chosen=${name} />
    <${Table} key=${name} names=${[name]} extra=${{ events: { project: project.value } }} empty=${EMPTY[name][0]} command=${EMPTY[name][1]} />
    <${Wrong} />`;
}

function Current() {
  const [facts, setFacts] = useState(null);
  const [asked, setAsked] = useState(0);
  const changes = JSON.stringify([summary.value?.phases?.alertrule, summary.value?.phases?.receiver]);
  const places = NAMES.map((name) => placesOf(`${name}:list`).join()).join(';');
  useEffect(() => {
    let isOver = false;
    Promise.all(NAMES.map((each) => readAll(each))).then(([rules, silences, receivers]) => {
      if (!isOver) setFacts({ rules: rules.items, silences: silences.items, receivers: receivers.items });
    });
    return () => { isOver = true; };
  }, [places, changes, asked, Math.floor(now.value / 10)]);
  if (!facts) return html`<p class="soft">Reading alerts…</p>`;
  return html`<${Firing} ...${facts} onChange=${() => setAsked(asked + 1)} /><${Receivers} found=${facts.receivers} />`;
}

const isSilencedBy = (silence, rule, alert) => silence.project === rule.project && silence.spec.until > now.value
  && (!silence.spec.rule || silence.spec.rule === rule.name)
  && Object.entries(silence.spec.labels ?? {}).every(([label, value]) => alert.labels[label] === value);

function Firing({ rules, silences, onChange }) {
  const rows = rules.flatMap((rule) => (rule.status?.alerts ?? []).map((alert) => ({
    rule, alert, silences: silences.filter((silence) => isSilencedBy(silence, rule, alert)),
  }))).sort((a, b) => (a.alert.state === 'pending') - (b.alert.state === 'pending')
    || SEVERITIES.indexOf(a.rule.spec.severity) - SEVERITIES.indexOf(b.rule.spec.severity)
    || a.rule.project.localeCompare(b.rule.project) || a.alert.since - b.alert.since);
  const more = rules.reduce((sum, rule) => sum + (rule.status?.more ?? 0), Math.max(0, rows.length - SHOWN));
  const firing = rules.reduce((sum, rule) => sum + (rule.status?.firing ?? 0), 0);
  return html`<section class="panel"><h2>Firing and pending</h2>
    <p class=${`state ${firing ? 'failed' : 'running'}`}>${firing ? `${firing} ${firing === 1 ? 'alert fires' : 'alerts fire'}.` : 'No alert fires.'}</p>
    ${rows.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Firing and pending alerts"><table>
      <thead><tr><th>SEVERITY</th><th>STATE</th><th>RULE</th><th>PROJECT</th><th>LABELS</th><th>VALUE</th><th>SINCE</th><th>SILENCE</th></tr></thead>
      <tbody>${rows.slice(0, SHOWN).map((row) => html`<tr key=${`${row.rule.uid} ${JSON.stringify(row.alert.labels)}`}>
        <td><span class=${`state ${COLOUR[row.rule.spec.severity] ?? 'unknown'}`}>${row.rule.spec.severity}</span></td>
        <td>${row.silences.length ? 'silenced' : row.alert.state}</td><td><${Name} row=${row.rule} /></td><td>${row.rule.project}</td>
        <td class="mono">${Object.entries(row.alert.labels).map(([label, value]) => `${label}=${value}`).join(' ')}</td>
        <td>${number(row.alert.value, 2)}</td><td><${Age} since=${row.alert.since} /></td><td><${Silencing} ...${row} onChange=${onChange} /></td></tr>`)}</tbody></table></div>`}
    ${more > 0 && html`<p class="soft">and ${more} more</p>`}</section>`;
}

function Silencing({ rule, alert, silences, onChange }) {
  const [busy, setBusy] = useState(false);
  const needs = silences.length ? 'silence:delete' : 'silence:create';
  const allowed = may(needs, rule.project);
  const perform = async (work, words) => {
    setBusy(true);
    try { await work(); notice(words); onChange(); } catch (error) { noticeOf(error); }
    setBusy(false);
  };
  const kind = kinds.value.get('silence');
  const labels = Object.fromEntries(Object.entries(alert.labels).filter(([, value]) => value.length <= 200).slice(0, MOST_LABELS));
  const name = `${rule.name.slice(0, 40)}-${Math.random().toString(36).slice(2, 8)}`.replace(/-+/g, '-');
  const silence = () => perform(() => post(pathOf(kind, rule.project), {
    kind: 'silence', name, project: rule.project, spec: { rule: rule.name, labels, until: Math.floor(Date.now() / 1000) + SILENT_SECONDS, comment: 'from the dashboard' },
  }), `${rule.name} is silenced for 2 hours`);
  const end = () => perform(() => Promise.all(silences.map((each) => request('DELETE', pathOf(kind, each.project, each.name)))), `${rule.name} is not silenced any more`);
  return html`<button type="button" disabled=${busy || !allowed} title=${allowed ? (silences.length ? `until ${moment(Math.max(...silences.map((each) => each.spec.until)))}` : 'for 2 hours') : `you lack the permission ${needs}`}
    onClick=${silences.length ? end : silence}>${silences.length ? 'Unsilence' : 'Silence'}</button>`;
}

function Receivers({ found }) {
  if (!found.length) return null;
  return html`<section><h2>Receivers</h2><div class="panels">${found.slice(0, 12).map((each) => {
    const { phase = 'Pending', last, sent = 0, abandoned = 0, next_attempt_at: next } = each.status ?? {};
    return html`<div class="panel" key=${each.uid}><div class="row"><${Name} row=${each} /><${State} phase=${phase} health=${health.value[phase]} /><span class="grow"></span><span class="soft">${each.project}</span></div>
      <div class="soft mono">${each.spec.type} ${each.spec.url || each.spec.to.join(', ')}</div>
      <div>${last ? html`${last.answer}, <${Age} since=${last.at} /> ago` : 'Nothing was sent yet.'}</div>
      <div class="soft">${sent} sent${abandoned ? `, ${abandoned} abandoned` : ''}${phase === 'Failing' && next ? `; next attempt at ${moment(next)}` : ''}</div></div>`;
  })}</div></section>`;
}

function Wrong() {
  const problems = summary.value?.problems ?? [];
  const warnings = events.value.filter((event) => event.type === 'Warning');
  return html`<section class="panel"><h2>Wrong now (${summary.value?.problems_total ?? problems.length})</h2>
      ${!problems.length && html`<p class="state running">Nothing is wrong.</p>`}
      <${ProblemList} problems=${problems} /></section>
    <section class="panel"><h2>Newest warnings</h2><${EventList} events=${warnings} /></section>`;
}

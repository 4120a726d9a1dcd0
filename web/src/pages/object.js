// One object: its facts, why it is where it is, what happened, its samples, and ways into it. Tabs follow from what its kind can do.
import { useEffect } from 'preact/hooks';
import { html } from '../html.js';
import { moment, size } from '../format.js';
import { events, object, show, summary } from '../stream.js';
import { health, kinds, may, route, toObject } from '../state.js';
import { ActionButtons } from '../ui/actions.js';
import { EventList } from '../ui/events.js';
import { lazy } from '../ui/lazy.js';
import { Age, Command, State, Tabs } from '../ui/parts.js';
import { DrainPreview } from './nodes.js';

const TABS = {
  why: ['Why here', lazy(() => import('../tabs/why.js').then((part) => part.Why))],
  metrics: ['Metrics', lazy(() => import('../tabs/metrics.js').then((part) => part.Metrics))],
  logs: ['Logs', lazy(() => import('../tabs/logs.js').then((part) => part.Logs))],
  exec: ['Terminal', lazy(() => import('../tabs/terminal.js').then((part) => part.Terminal))],
  console: ['Console', lazy(() => import('../tabs/terminal.js').then((part) => part.Terminal))],
  screen: ['Screen', lazy(() => import('../tabs/screen.js').then((part) => part.Screen))],
  flows: ['Flows', lazy(() => import('../tabs/flows.js').then((part) => part.Flows))],
  capture: ['Packets', lazy(() => import('../tabs/capture.js').then((part) => part.Capture))],
  insight: ['Insight', lazy(() => import('../tabs/insight.js').then((part) => part.Insight))],
  trace: ['Trace', lazy(() => import('../tabs/trace.js').then((part) => part.Trace))],
  spec: ['Spec', lazy(() => import('../tabs/spec.js').then((part) => part.Spec))],
};

export function ObjectPage() {
  const [, kindName, where, name, asked] = route.value.path;
  const tab = asked === 'events' || Object.hasOwn(TABS, asked ?? '') ? asked : 'summary';
  const kind = kinds.value.get(kindName);
  const project = where === '-' ? '' : where;
  useEffect(() => {
    if (kind) show({ object: { kind: kindName, project, name }, events: { project, object: `${kindName}/${name}` } });
  }, [kindName, where, name]);
  if (!kind) return html`<h1>There is no kind ${kindName}</h1>`;
  const obj = object.value;
  const row = { kind: kindName, project, name, uid: obj?.uid ?? '', phase: obj ? phaseOf(obj) : '' };
  const streams = new Set((kind.streams ?? []).map((each) => each.name ?? each));
  const isWorkload = kind.workload || ['vm', 'container'].includes(kindName);
  const hasInsight = (isWorkload || ['function', 'node'].includes(kindName)) && kinds.value.has(kindName === 'node' ? 'nodeprofile' : 'workloadprofile');
  const tabs = [['summary', 'Summary'], ...(isWorkload ? [['why', TABS.why[0]]] : []), ['events', 'Events'], ...(isWorkload || kindName === 'function' ? [['trace', TABS.trace[0]]] : []),
    ...(hasInsight ? [['insight', TABS.insight[0]]] : []), ...Object.entries(TABS).filter(([verb]) => streams.has(verb)).map(([verb, [words]]) => [verb, words]), ['spec', 'Spec']]
    .map(([verb, words]) => [verb, words, toObject(row, verb)]);
  const Part = tab === 'insight' && !hasInsight ? undefined : TABS[tab]?.[1];
  const lacks = streams.has(tab) && !may(`${kindName}:${tab}`, project) ? `${kindName}:${tab}` : '';
  return html`
    <div class="row"><h1><span class="soft">${kind.title}</span> ${name}</h1>
      ${obj && html`<${State} phase=${phaseOf(obj)} health=${healthOf(row, obj)} />`}
      ${project && html`<span class="soft">in ${project}</span>`}<span class="grow"></span>
      ${obj && html`<${ActionButtons} rows=${[row]} />`}</div>
    ${obj === null && html`<div class="problem" role="alert">There is no ${kind.title} ${name}${project ? ` in project ${project}` : ''}; it may have been deleted. <a href=${`#/k/${kind.plural}`}>All ${kind.plural}</a></div>`}
    ${obj?.deleting_since && html`<div class="problem">It is being deleted since ${moment(obj.deleting_since)}; what holds it: ${(obj.finalizers ?? []).join(', ') || 'nothing'}</div>`}
    <${Tabs} tabs=${tabs} current=${tab} label=${`Parts of ${name}`} />
    ${obj && tab === 'summary' && html`<${Summary} kind=${kind} obj=${obj} row=${row} />`}
    ${tab === 'events' && html`<${EventList} events=${events.value} without />`}
    ${obj && lacks && html`<p role="alert">You lack the permission <code>${lacks}</code>.</p>`}
    ${obj && Part && !lacks && html`<${Part} key=${`${tab}/${obj.uid}`} row=${row} kind=${kind} object=${obj} verb=${tab} />`}`;
}

const phaseOf = (obj) => obj.status?.phase ?? (obj.conditions?.find((each) => each.type === 'Ready')?.status === 'True' ? 'Ready' : '');

// A problem says more than its phase does: a VM that runs may be degraded.
function healthOf(row, obj) {
  const problem = summary.value?.problems?.find((each) => each.kind === row.kind && each.name === row.name && (each.project || '') === row.project);
  if (problem) return problem.health;
  return health.value[phaseOf(obj)] ?? 'unknown';
}

function Summary({ kind, obj, row }) {
  const status = obj.status ?? {};
  const warned = (obj.conditions ?? []).filter((each) => each.message);
  return html`
    ${(status.message || status.reason) && html`<div class="problem"><b>${status.reason}</b> ${status.message}</div>`}
    <div class="panels">
      <section class="panel"><h2>Status</h2><${Facts} of=${status} skip=${['steps', 'message', 'reason']} /></section>
      <section class="panel"><h2>Wanted</h2><${Facts} of=${obj.spec} /></section>
      <section class="panel"><h2>Object</h2><dl class="facts">
        <dt>created</dt><dd><${Age} since=${obj.created_at} /> ago${obj.created_by ? ` by ${obj.created_by}` : ''}</dd>
        <dt>uid</dt><dd class="mono">${obj.uid}</dd><dt>generation</dt><dd>${obj.generation}</dd>
        ${obj.owner && html`<dt>belongs to</dt><dd><a class="mono" href=${toObject(obj.owner)}>${obj.owner.kind}/${obj.owner.name}</a></dd>`}
        ${Object.keys(obj.labels ?? {}).length > 0 && html`<dt>labels</dt><dd>${Object.entries(obj.labels).map(([key, value]) => html`<code key=${key}>${key}=${value} </code>`)}</dd>`}</dl></section>
      ${obj.report && html`<section class="panel"><h2>Reported by its node</h2><${Facts} of=${obj.report} /></section>`}
      ${warned.length > 0 && html`<section class="panel"><h2>Conditions</h2><dl class="facts">${warned.map((each) => html`<dt key=${each.type}>${each.type}</dt><dd>${each.message}</dd>`)}</dl></section>`}
      ${status.steps?.length > 0 && html`<section class="panel"><h2>Steps</h2><ol>${status.steps.map((step) => html`<li>${step.name ?? step.step ?? ''} ${step.detail ?? step.message ?? ''}</li>`)}</ol></section>`}
      ${kind.name === 'node' && html`<${DrainPreview} node=${row.name} />`}
    </div>
    <${Command} words=${`weft describe ${kind.name}/${row.name}${row.project && row.project !== 'default' ? ` -p ${row.project}` : ''}`} />`;
}

// A struct as rows: empty fields are left out, sizes and times are written for people, names of objects are links.
function Facts({ of, skip = [] }) {
  const rows = Object.entries(of ?? {}).filter(([key, value]) => !skip.includes(key) && value !== null && value !== '' && value !== false
    && !(Array.isArray(value) && !value.length) && !(typeof value === 'object' && !Array.isArray(value) && !Object.keys(value).length));
  if (!rows.length) return html`<p class="soft">Nothing yet.</p>`;
  return html`<dl class="facts">${rows.slice(0, 40).map(([key, value]) => html`<dt key=${key}>${key.replaceAll('_', ' ')}</dt><dd><${Value} name=${key} value=${value} /></dd>`)}</dl>`;
}

const BYTES = /(^|_)(memory|disk|size|bytes)$/;
const TIMES = /_(at|since|start|end|until)$|^(at|since|start|end|until)$/;
function Value({ name, value }) {
  if (typeof value === 'number' && BYTES.test(name)) return size(value);
  if (typeof value === 'number' && TIMES.test(name) && value > 1e9) return moment(value);
  if (typeof value === 'string' && (name === 'node' || name === 'target' || name === 'source') && kinds.value.has('node') && /^[a-z0-9-]+$/.test(value)) return html`<a class="mono" href=${toObject({ kind: 'node', name: value })}>${value}</a>`;
  if (typeof value === 'object') {
    const text = JSON.stringify(value, null, 1);
    return text.length > 300 ? html`<details><summary>${Array.isArray(value) ? `${value.length} entries` : `${Object.keys(value).length} fields`}</summary><pre>${text.slice(0, 20000)}</pre></details>` : html`<code>${text.replace(/\s+/g, ' ')}</code>`;
  }
  return String(value).length > 400 ? `${String(value).slice(0, 400)}…` : String(value);
}

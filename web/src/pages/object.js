// One object: its facts, why it is where it is, what happened, its samples, and ways into it. Tabs follow from what its kind can do.
import { useEffect } from 'preact/hooks';
import { html } from '../html.js';
import { many, moment } from '../format.js';
import { objectOf, ownEvents, show, summary } from '../stream.js';
import { health, kinds, may, route, toObject } from '../state.js';
import { ActionButtons } from '../ui/actions.js';
import { EventList } from '../ui/events.js';
import { lazy } from '../ui/lazy.js';
import { State, Tabs } from '../ui/parts.js';
import { ObjectSummary } from './summary/object.js';

const SUMMARIES = {
  vm: lazy(() => import('./summary/workload.js').then((part) => part.WorkloadSummary)),
  node: lazy(() => import('./summary/node.js').then((part) => part.NodeSummary)),
  deployment: lazy(() => import('./summary/deployment.js').then((part) => part.DeploymentSummary)),
};
SUMMARIES.container = SUMMARIES.vm;
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
  const what = { kind: kindName, project, name };
  useEffect(() => {
    if (kind) show({ object: what, events: { project, object: `${kindName}/${name}` } });
  }, [kindName, where, name]);
  if (!kind) return html`<h1>There is no kind ${kindName}</h1>`;
  const obj = objectOf(what);
  const row = { kind: kindName, project, name, uid: obj?.uid ?? '', phase: obj ? phaseOf(obj) : '' };
  const streams = new Set((kind.streams ?? []).map((each) => each.name ?? each));
  const isWorkload = kind.workload || ['vm', 'container'].includes(kindName);
  const hasInsight = (isWorkload || ['function', 'node'].includes(kindName)) && kinds.value.has(kindName === 'node' ? 'nodeprofile' : 'workloadprofile');
  const tabs = [['summary', 'Summary'], ...(isWorkload ? [['why', TABS.why[0]]] : []), ['events', 'Events'], ...(isWorkload || kindName === 'function' ? [['trace', TABS.trace[0]]] : []),
    ...(hasInsight ? [['insight', TABS.insight[0]]] : []), ...Object.entries(TABS).filter(([verb]) => streams.has(verb)).map(([verb, [words]]) => [verb, words]), ['spec', 'Spec']]
    .map(([verb, words]) => [verb, words, toObject(row, verb)]);
  const Part = tab === 'insight' && !hasInsight ? undefined : TABS[tab]?.[1];
  const Summary = SUMMARIES[kindName] ?? ObjectSummary;
  const lacks = streams.has(tab) && !may(`${kindName}:${tab}`, project) ? `${kindName}:${tab}` : '';
  return html`
    <div class="row"><h1><span class="soft">${kind.title}</span> ${name}</h1>
      ${obj && html`<${State} phase=${phaseOf(obj)} health=${healthOf(row, obj)} />`}
      ${project && html`<span class="soft">in ${project}</span>`}<span class="grow"></span>
      ${obj && html`<${ActionButtons} rows=${[row]} />`}</div>
    ${obj === null && html`<div class="problem" role="alert">There is no ${kind.title} ${name}${project ? ` in project ${project}` : ''}; it may have been deleted. <a href=${`#/k/${kind.plural}`}>All ${many(kind)}</a></div>`}
    ${obj?.deleting_since && html`<div class="problem">It is being deleted since ${moment(obj.deleting_since)}; what holds it: ${(obj.finalizers ?? []).join(', ') || 'nothing'}</div>`}
    <${Tabs} tabs=${tabs} current=${tab} label=${`Parts of ${name}`} />
    ${obj && tab === 'summary' && html`<${Summary} key=${obj.uid} kind=${kind} obj=${obj} row=${row} />`}
    ${tab === 'events' && html`<${EventList} events=${ownEvents.value} without />`}
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


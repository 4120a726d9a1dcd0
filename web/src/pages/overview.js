// The first page: what is wrong, how full the nodes are, what changes now.
import { html } from '../html.js';
import { useEffect } from 'preact/hooks';
import { events, show, summary } from '../stream.js';
import { kinds, link, project, toObject } from '../state.js';
import { Age, Bar, Empty, Name, State } from '../ui/parts.js';
import { EventList } from '../ui/events.js';

export function Overview() {
  useEffect(() => { show({ events: { project: project.value } }); }, [project.value]);
  const facts = summary.value;
  if (!facts) return html`<h1>Overview</h1><p class="soft">Loading…</p>`;
  return html`
    <h1>Overview</h1>
    <${Problems} facts=${facts} />
    <${Counts} phases=${facts.phases} />
    ${facts.nodes?.length > 0 && html`<section><h2>Nodes: allocated and used</h2><${NodeBars} nodes=${facts.nodes.slice(0, 12)} />
      ${facts.nodes.length > 12 && html`<p><a href="#/nodes">All ${facts.nodes.length} nodes</a></p>`}</section>`}
    <div class="panels">
      <section class="panel"><h2>Changing now</h2><${Running} operations=${facts.operations} /></section>
      <section class="panel"><h2>Newest events</h2><${EventList} events=${events.value.slice(-15)} /></section>
    </div>`;
}

function Problems({ facts }) {
  const problems = facts.problems ?? [];
  if (!problems.length) return html`<p class="state running">Nothing is wrong.</p>`;
  const total = facts.problems_total ?? problems.length;
  return html`<section class="panel"><h2>What is wrong (${total})</h2><${ProblemList} problems=${problems.slice(0, 10)} />
    ${total > 10 && html`<p class="soft">and ${total - 10} more under <a href="#/alerts">Alerts</a></p>`}</section>`;
}

export const ProblemList = ({ problems }) => html`<ul class="list">${problems.map((each) => html`<li key=${`${each.kind}/${each.project}/${each.name}`}>
  <div class="row"><${State} phase=${each.phase} health=${each.health} /><span class="soft">${kinds.value.get(each.kind)?.title ?? each.kind}</span><${Name} row=${each} />
    ${each.project && html`<span class="soft">${each.project}</span>`}${each.since && html`<span class="soft"><${Age} since=${each.since} /></span>`}</div>
  <div>${each.note}</div>${each.hint && html`<div class="soft">${each.hint}</div>`}</li>`)}</ul>`;

function Counts({ phases }) {
  const entries = Object.entries(phases ?? {}).filter(([, by]) => Object.values(by).some(Boolean));
  if (!entries.length) return html`<${Empty} words="There is nothing here yet." command="weft vm create hello --image tiny" />`;
  return html`<div class="tiles">${entries.map(([name, by]) => {
    const kind = kinds.value.get(name);
    const words = Object.entries(by).map(([phase, count]) => `${phase} ${count}`).join(', ');
    return html`<a key=${name} class="tile" href=${['vm', 'container', 'function', 'job'].includes(name) ? link(['workloads'], { kind: name }) : link(['k', kind?.plural ?? name])}>
      <span class="soft">${kind?.title ?? name}</span><strong>${Object.values(by).reduce((a, b) => a + b, 0)}</strong><small class="soft">${words}</small></a>`;
  })}</div>`;
}

export const NodeBars = ({ nodes, action }) => html`<div class="panels">${nodes.map((node) => html`<div class="panel" key=${node.name}>
  <div class="row"><a class="mono" href=${toObject({ kind: 'node', name: node.name })}><b>${node.name}</b></a><${State} phase=${node.phase} health=${node.health} /><span class="grow"></span><span class="soft">${node.workloads} ${node.workloads === 1 ? 'workload' : 'workloads'}</span></div>
  ${node.note && html`<div class="soft">${node.note}</div>`}
  <dl class="facts" style=${{ gridTemplateColumns: 'max-content minmax(0,1fr)', marginTop: '8px' }}>
    <dt>cores</dt><dd><${Bar} title="cores" of=${node.cpu} unit="cores" /></dd>
    <dt>memory</dt><dd><${Bar} title="memory" of=${node.memory} unit="bytes" /></dd>
    <dt>disk</dt><dd><${Bar} title="disk" of=${node.disk} unit="bytes" /></dd>
  </dl>${action?.(node)}</div>`)}</div>`;

export function Running({ operations }) {
  if (!operations?.length) return html`<p class="soft">Nothing changes now.</p>`;
  return html`<ul class="list">${operations.slice(0, 15).map((each) => html`<li key=${`${each.kind}/${each.name}`}>
    <div class="row"><${State} phase=${each.phase} health="changing" /><span>${each.act}</span><${Name} row=${each}>${each.subject || each.name}<//>
    <span class="soft"><${Age} since=${each.started_at} /></span></div>${each.note && html`<div class="soft">${each.note}</div>`}</li>`)}</ul>`;
}

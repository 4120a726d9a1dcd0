// Nodes: allocated beside used, fullest first, and what a drain would do before it is begun.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { ask } from '../api.js';
import { share, size } from '../format.js';
import { summary } from '../stream.js';
import { kinds, may, route, setQuery, toObject } from '../state.js';
import { run } from '../ui/actions.js';
import { close, open } from '../ui/dialog.js';
import { Command, Legend, ProblemBox } from '../ui/parts.js';
import { Table } from '../ui/table.js';
import { NodeBars, trends, useNodeHistory } from '../ui/nodes.js';

const CHARTED = 100; // nodes with a small chart
const ORDERS = { cpu: 'cores allocated', memory: 'memory allocated', used: 'cores used', name: 'name' };

export function Nodes() {
  const by = ORDERS[route.value.query.by] ? route.value.query.by : 'memory';
  const rank = { cpu: (node) => share(node.cpu?.allocated, node.cpu?.capacity), memory: (node) => share(node.memory?.allocated, node.memory?.capacity), used: (node) => share(node.cpu?.used, node.cpu?.capacity) }[by];
  const nodes = [...(summary.value?.nodes ?? [])].sort((a, b) => (rank ? rank(b) - rank(a) : 0) || a.name.localeCompare(b.name));
  const found = useNodeHistory(nodes.slice(0, CHARTED).map((node) => node.name));
  useEffect(() => { trends.value = found; }, [found]);
  return html`
    <div class="row"><h1 class="grow">Nodes</h1><${Legend} /><label>Fullest first by <select value=${by} onChange=${(event) => setQuery({ by: event.target.value })}>
      ${Object.entries(ORDERS).map(([name, words]) => html`<option value=${name}>${words}</option>`)}</select></label></div>
    <${NodeBars} nodes=${nodes.slice(0, 24)} action=${(node) => (/^(Cordoned|Drain|Maint)/.test(node.phase) ? html`<${UncordonButton} node=${node.name} />` : html`<${DrainButton} node=${node.name} />`)} />
    <${Table} names=${['node']} empty="No node has joined yet." command="weft token create --use join" />`;
}

function DrainButton({ node }) {
  const lacks = !may('node:drain', '') && 'node:drain';
  return html`<button type="button" disabled=${Boolean(lacks)} title=${lacks ? `you lack the permission ${lacks}` : ''}
    onClick=${() => open(html`<div class="body"><${DrainPreview} node=${node} at="dialog" /></div>`)}>Drain ${node}…</button>`;
}

function UncordonButton({ node }) {
  const lacks = !may('node:uncordon', '') && 'node:uncordon';
  return html`<button type="button" disabled=${Boolean(lacks)} title=${lacks ? `you lack the permission ${lacks}` : `weft node uncordon ${node}`}
    onClick=${() => run({ name: 'uncordon' }, { kind: 'node', name: node, project: '' }, {})}>Uncordon ${node}</button>`;
}

// Where each workload would go, together, by the scheduler's own answer.
export function DrainPreview({ node, at }) {
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  const [asked, setAsked] = useState(at === 'dialog');
  useEffect(() => {
    if (!asked) return undefined;
    let isOver = false;
    ask(kinds.value.get('report'), '', { subject: 'drain', node }).then((status) => !isOver && setAnswer(status), (problem) => !isOver && setError(problem));
    return () => { isOver = true; };
  }, [asked, node]);
  const drain = () => { run({ name: 'drain' }, { kind: 'node', name: node, project: '' }, {}); close(); };
  const stays = answer?.leaving?.filter((each) => !each.to) ?? [];
  return html`<section class=${at === 'dialog' ? '' : 'panel'}><h2 id="dialog-title">Drain ${node}</h2>
    ${!asked && html`<button type="button" onClick=${() => setAsked(true)}>Show what a drain would move</button>`}
    ${asked && !answer && !error && html`<p class="soft">Asking the scheduler…</p>`}
    <${ProblemBox} error=${error} />
    ${answer && html`
      <p>${answer.leaving.length === 0 ? 'Nothing runs here: the node is only cordoned.' : `${answer.leaving.length - stays.length} of ${answer.leaving.length} workloads would move${stays.length ? `; ${stays.length} can’t leave yet` : ''}.`}</p>
      ${answer.leaving.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Workloads that would move"><table><thead><tr><th>WORKLOAD</th><th>TO</th><th>HOW</th><th class="number">MEMORY</th><th>NOTE</th></tr></thead>
        <tbody>${answer.leaving.map((each) => { const [kind, name] = each.workload.split('/'); return html`<tr key=${each.workload}><td><a class="mono" href=${toObject({ kind, project: each.project, name })}>${each.workload}</a></td>
          <td class="mono">${each.to || '–'}</td><td>${each.mode}</td><td class="number">${size(each.memory)}</td><td>${each.message || each.reason}</td></tr>`; })}</tbody></table></div>`}
      <${Command} words=${`weft node drain ${node}`} />
      <div class="row"><button type="button" class="bad" disabled=${!may('node:drain', '')} onClick=${drain}>Drain ${node}</button>
        ${at === 'dialog' && html`<button type="button" onClick=${close}>Close</button>`}</div>`}
  </section>`;
}

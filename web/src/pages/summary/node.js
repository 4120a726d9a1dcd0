// A node as people ask for it: how full it is, what runs there, what a drain would move; then the machine, and all else.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../../html.js';
import { number, size } from '../../format.js';
import { readAll } from '../../read.js';
import { health, kinds, toObject } from '../../state.js';
import { ownEvents, returns, summary } from '../../stream.js';
import { EventList } from '../../ui/events.js';
import { AMOUNTS, findNode, Trend, useNodeHistory } from '../../ui/nodes.js';
import { Bar, Legend, Name, State } from '../../ui/parts.js';
import { DrainPreview } from '../nodes.js';
import { Describe, Internals, Reason } from './object.js';

const SHOWN = 100; // workloads
const EVENTS = 6;
const OUT_OF_REACH = new Set(['nodeLost', 'nodeAutonomous']); // reasons of a workload whose node isn't heard
const MACHINE = { address: 'address', version: 'weft', hypervisor: 'hypervisor', kernel: 'kernel', accelerator: 'guests run by', cpu_model: 'processor' };

export function NodeSummary({ kind, obj, row }) {
  const labels = Object.entries(obj.labels ?? {});
  const place = [obj.spec?.zone, obj.spec?.rack].filter(Boolean).join(', ');
  const waiting = obj.conditions?.find((each) => each.type === 'GuestsGoOn' && each.status === 'False');
  return html`<${Reason} status=${obj.status} />${waiting && html`<div class="problem"><b>${waiting.reason}</b> ${waiting.message}</div>`}
    <div class="panels">
      <${Fill} name=${row.name} />
      <section class="panel"><h2>The machine</h2><dl class="facts">
        ${Object.entries(MACHINE).filter(([field]) => obj.report?.[field]).map(([field, words]) => html`<dt key=${field}>${words}</dt><dd>${obj.report[field]}</dd>`)}
        ${place && html`<dt>place</dt><dd>${place}</dd>`}
        ${labels.length > 0 && html`<dt>labels</dt><dd>${labels.map(([key, value]) => html`<code key=${key}>${key}=${value} </code>`)}</dd>`}</dl></section>
      <section class="panel short"><div class="row"><h2 class="grow">Newest events</h2><a href=${toObject(row, 'events')}>all</a></div><${EventList} events=${ownEvents.value.slice(-EVENTS)} without /></section>
    </div>
    <${Workloads} name=${row.name} /><${DrainPreview} node=${row.name} />
    <${Describe} kind=${kind} row=${row} /><${Internals} kind=${kind} obj=${obj} row=${row} />`;
}

function Fill({ name }) {
  const node = findNode(name);
  const trends = useNodeHistory([name]);
  if (!node) return null;
  return html`<section class="panel"><div class="row"><h2 class="grow">How full it is</h2><${Legend} /></div><dl class="facts">
    ${Object.entries(AMOUNTS).map(([part, [title, unit]]) => html`<dt key=${part}>${title}</dt><dd><${Bar} title=${title} of=${node[part]} unit=${unit}><${Trend} points=${trends.get(`${name}/${part}`)} part=${part} name=${name} /><//></dd>`)}</dl></section>`;
}

function Workloads({ name }) {
  const [found, setFound] = useState(null);
  const changes = JSON.stringify([findNode(name)?.workloads, summary.value?.phases?.vm, summary.value?.phases?.container]);
  useEffect(() => {
    let isOver = false;
    Promise.all(['vm', 'container'].map((each) => readAll(each, { fields: `status.node=${name}` }))).then((pages) => {
      if (!isOver) setFound(pages.flatMap((page) => page.items).filter((each) => !each.status?.ended));
    });
    return () => { isOver = true; };
  }, [name, changes, returns.value]);
  if (!found) return html`<p class="soft">Reading what runs there…</p>`;
  const isSilent = found.some(outlookOf);
  return html`<section class="panel"><h2>Workloads (${found.length})</h2>
    ${!found.length && html`<p class="soft">Nothing runs there.</p>`}
    ${found.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Workloads"><table><thead><tr><th>KIND</th><th>NAME</th><th>PROJECT</th><th>PHASE</th><th class="number">CORES</th><th class="number">MEMORY</th><th>ADDRESS</th>${isSilent && html`<th>OUTLOOK</th>`}</tr></thead>
      <tbody>${found.slice(0, SHOWN).map((each) => html`<tr key=${each.uid}><td>${kinds.value.get(each.kind).title}</td><td><${Name} row=${each} /></td><td>${each.project}</td><td><${State} phase=${each.status?.phase} health=${health.value[each.status?.phase]} /></td>
        <td class="number">${number(each.spec.cpu, 2)}</td><td class="number">${size(each.spec.memory)}</td><td class="mono">${each.status?.address || '–'}</td>${isSilent && html`<td>${outlookOf(each)}</td>`}</tr>`)}</tbody></table></div>`}
    ${found.length > SHOWN && html`<p class="more">and ${found.length - SHOWN} more</p>`}</section>`;
}

// What becomes of a guest whose node isn't heard: the second clause of what its status says.
const outlookOf = (each) => (OUT_OF_REACH.has(each.status?.reason) ? each.status.message.split('; ').slice(1).join('; ') : '');

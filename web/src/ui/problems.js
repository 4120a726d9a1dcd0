// What is wrong, and what changes: from the summary, each with its age.
import { html } from '../html.js';
import { kinds, may, toObject } from '../state.js';
import { Age, Name, State } from './parts.js';

export const ProblemList = ({ problems }) => html`<ul class="list">${problems.map((each) => html`<li key=${`${each.kind}/${each.project}/${each.name}`}>
  <div class="row"><${State} phase=${each.phase} health=${each.health} /><span class="soft">${kinds.value.get(each.kind)?.title ?? each.kind}</span><${Name} row=${each} />
    ${each.project && html`<span class="soft">${each.project}</span>`}<${Ways} row=${each} />${each.since && html`<span class="soft"><${Age} since=${each.since} /></span>`}</div>
  <div>${each.note}</div>${each.hint && html`<div class="soft mono">${each.hint}</div>`}</li>`)}</ul>`;

// Straight to what is asked next of a workload: why it waits, or what it printed.
function Ways({ row }) {
  if (!['vm', 'container'].includes(row.kind)) return null;
  if (row.health === 'waiting') return html`<a href=${toObject(row, 'why')}>why</a>`;
  return may(`${row.kind}:logs`, row.project) ? html`<a href=${toObject(row, 'logs')}>logs</a>` : null;
}

export function Running({ operations }) {
  if (!operations?.length) return html`<p class="soft">Nothing changes now.</p>`;
  return html`<ul class="list">${operations.slice(0, 15).map((each) => html`<li key=${`${each.kind}/${each.name}`}>
    <div class="row"><${State} phase=${each.phase} health="changing" /><span>${each.act}</span><${Name} row=${each}>${each.subject || each.name}<//>
    <span class="soft"><${Age} since=${each.started_at} /></span></div>${each.note && html`<div class="soft">${each.note}</div>`}</li>`)}</ul>`;
}

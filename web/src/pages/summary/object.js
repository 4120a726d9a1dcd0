// The summary of an object of any kind, and what all summaries end with: every field, for who looks for the internals.
import { html } from '../../html.js';
import { useDescribed } from '../../described.js';
import { toObject } from '../../state.js';
import { Facts } from '../../ui/facts.js';
import { Age, Command } from '../../ui/parts.js';

export function ObjectSummary({ kind, obj, row }) {
  return html`<${Reason} status=${obj.status} /><${Fields} kind=${kind} obj=${obj} row=${row} /><${Describe} kind=${kind} row=${row} />`;
}

export const Reason = ({ status }) => (status?.message || status?.reason) && html`<div class="problem"><b>${status.reason}</b> ${status.message}</div>`;

export const Describe = ({ kind, row }) => html`<${Command} words=${`weft describe ${kind.name}/${row.name}${row.project && row.project !== 'default' ? ` -p ${row.project}` : ''}`} />`;

// Every field behind a heading, below what people ask first.
export const Internals = ({ kind, obj, row }) => html`<details class="internals"><summary>All fields</summary><${Fields} kind=${kind} obj=${obj} row=${row} /></details>`;

function Fields({ kind, obj, row }) {
  const described = useDescribed(kind.name);
  const types = new Map((described?.spec ?? []).map((field) => [field.path, field.type]));
  const status = obj.status ?? {};
  const warned = (obj.conditions ?? []).filter((each) => each.message);
  const panel = (words, of, more) => Object.keys(of ?? {}).length > 0 && html`<section class="panel"><h2>${words}</h2><${Facts} of=${of} ...${more} /></section>`;
  return html`<div class="panels">
    ${panel('Status', status, { skip: ['steps', 'message', 'reason'] })}
    ${panel('Spec', obj.spec, { types, at: 'spec' })}
    <section class="panel"><h2>Object</h2><dl class="facts">
      <dt>created</dt><dd><${Age} since=${obj.created_at} /> ago${obj.created_by ? ` by ${obj.created_by}` : ''}</dd>
      <dt>uid</dt><dd class="mono">${obj.uid}</dd><dt>generation</dt><dd>${obj.generation}</dd>
      ${obj.owner && html`<dt>belongs to</dt><dd><a class="mono" href=${toObject(obj.owner)}>${obj.owner.kind}/${obj.owner.name}</a></dd>`}
      ${Object.keys(obj.labels ?? {}).length > 0 && html`<dt>labels</dt><dd>${Object.entries(obj.labels).map(([key, value]) => html`<code key=${key}>${key}=${value} </code>`)}</dd>`}</dl></section>
    ${panel('Reported by its node', obj.report)}
    ${warned.length > 0 && html`<section class="panel"><h2>Conditions</h2><dl class="facts">${warned.map((each) => html`<dt key=${each.type}>${each.type}</dt><dd>${each.message}</dd>`)}</dl></section>`}
    ${status.steps?.length > 0 && html`<section class="panel"><h2>Steps</h2><ol>${status.steps.map((step) => html`<li>${step.name ?? step.step ?? ''} ${step.detail ?? step.message ?? ''}</li>`)}</ol></section>`}
  </div>`;
}

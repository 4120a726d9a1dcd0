// Why a workload is where it is: the scheduler's newest decision; and what if its fields were others.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { ask, get, pathOf } from '../api.js';
import { moment, number, size } from '../format.js';
import { kinds, toObject } from '../state.js';
import { returns } from '../stream.js';
import { Command, ProblemBox } from '../ui/parts.js';

const amount = (resource, value) => (/memory|disk/.test(resource) ? size(value) : number(value, 2));

export function Why({ row, object }) {
  const [decision, setDecision] = useState(undefined);
  useEffect(() => {
    let isOver = false;
    get(pathOf(kinds.value.get('decision'), row.project, `${row.kind}.${row.name}`)).then((found) => !isOver && setDecision(found.spec), () => !isOver && setDecision(null));
    return () => { isOver = true; };
  }, [row.uid, object?.revision, returns.value]);
  return html`
    <section class="panel broad"><h2>Placement</h2>
      ${decision === undefined && html`<p class="soft">Reading…</p>`}
      ${decision === null && html`<p>No placement is decided yet.</p>`}
      ${decision && html`<${Decision} of=${decision} />`}
      <${Command} words=${`weft explain ${row.kind}/${row.name}${row.project && row.project !== 'default' ? ` -p ${row.project}` : ''}`} />
    </section>
    <${WhatIf} row=${row} object=${object} />`;
}

function Decision({ of }) {
  const outcomes = { chosen: 'running', fits: 'waiting', refused: 'failed' };
  return html`
    <p>${of.error ? html`<span class="state failed">${of.error}</span> ${of.message}` : html`By policy <b>${of.named || of.policy}</b>, over ${of.nodes} nodes, in ${number(of.took_ms, 1)} ms, at ${moment(of.at)}`}</p>
    ${of.nearest && html`<p>Nearest: ${of.nearest}</p>`}
    ${(of.notes ?? []).map((note) => html`<p class="soft">${note}</p>`)}
    ${of.verdicts?.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Verdicts"><table>
      <thead><tr><th>NODE</th><th>VERDICT</th><th class="number">SCORE</th><th>WHY</th></tr></thead>
      <tbody>${of.verdicts.map((verdict) => html`<tr key=${verdict.node}><td><a class="mono" href=${toObject({ kind: 'node', name: verdict.node })}>${verdict.node}</a></td>
        <td><span class=${`state ${outcomes[verdict.outcome]}`}>${verdict.outcome}</span></td><td class="number">${verdict.score == null ? '–' : number(verdict.score, 1)}</td>
        <td style=${{ maxWidth: 'none' }}>${why(verdict)}</td></tr>`)}</tbody></table></div>`}`;
}

function why(verdict) {
  const lacks = (verdict.shortfalls ?? []).map((each) => `${each.resource}: ${amount(each.resource, each.wanted)} wanted, ${amount(each.resource, each.free)} free`);
  const terms = (verdict.terms ?? []).map((term) => `${term.name} ${number(term.weight, 2)} × ${number(term.value, 0)}`);
  return [verdict.reason, ...lacks, ...terms].filter(Boolean).join('; ');
}

function WhatIf({ row, object }) {
  const [fields, setFields] = useState({ cpu: '', memory: '' });
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const spec = object?.spec ?? {};
  if (spec.cpu === undefined) return null;
  const changes = Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== '').map(([key, value]) => [key, /^[0-9.]+$/.test(value) ? Number(value) : value]));
  const run = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    setAnswer(null);
    try { setAnswer(await ask(kinds.value.get('recommendation'), row.project, { workload: `${row.kind}/${row.name}`, changes })); } catch (problem) { setError(problem); }
    setBusy(false);
  };
  return html`<section class="panel broad"><h2>What if it asked for something else?</h2>
    <form class="row" onSubmit=${run}>
      ${Object.keys(fields).map((name) => html`<label key=${name}>${name} <input size="8" value=${fields[name]} placeholder=${name === 'memory' ? size(spec.memory) : spec[name]} onInput=${(event) => setFields({ ...fields, [name]: event.target.value })} /></label>`)}
      <button disabled=${busy}>${busy ? 'Asking…' : 'Ask the scheduler'}</button></form>
    <${ProblemBox} error=${error} />
    ${answer && html`<p>${answer.best ? html`It would go to <b class="mono">${answer.best}</b>.` : html`It would fit on no node: ${answer.message}. ${(answer.advice ?? []).map((each) => `${each.node}: ${each.text}.`).join(' ')}`}</p>`}
  </section>`;
}

// Rebalancing: plan it, apply it and undo it with one click each; the plans there are, and migrations ahead of shortages.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { ask, get, pathOf, post } from '../api.js';
import { kinds, may, notice, noticeOf, toObject } from '../state.js';
import { returns, summary } from '../stream.js';
import { Command, Empty, ProblemBox, State } from '../ui/parts.js';
import { PlanView } from '../ui/plan.js';
import { Table } from '../ui/table.js';

const NEEDS = 'rebalanceplan:list';
const UNDOABLE = new Set(['Running', 'Done']);

export function Rebalancing() {
  return html`<h1>Rebalancing</h1>
    ${may(NEEDS, '') ? html`<${Planner} />` : html`<p class="soft">Plans name workloads of all projects: they are shown to people who have the permission <code>${NEEDS}</code>. Migrations of your own workloads are below.</p>`}
    <section><h2>Migrations, also those that are planned or proposed</h2>
      <${Table} names=${['migration']} empty="No migration is planned." command="weft migration plan vm/NAME --window auto" /></section>`;
}

function Planner() {
  const [found, setFound] = useState(null);
  const [plans, setPlans] = useState([]);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const kind = kinds.value.get('rebalanceplan');
  const phases = JSON.stringify(summary.value?.phases?.rebalanceplan ?? {});
  const read = () => get(`/v1/${kind.plural}?limit=50`).then((page) => setPlans(page.items), setError);
  useEffect(() => { read(); }, [phases, returns.value]);
  const work = async (act) => {
    setBusy(true);
    setError(null);
    try { await act(); } catch (problem) { setError(problem); }
    setBusy(false);
  };
  const plan = () => work(async () => setFound(await ask(kinds.value.get('report'), '', { subject: 'rebalance' })));
  const apply = () => work(async () => {
    const name = `plan-${crypto.randomUUID().slice(0, 6)}`;
    const { steps, loads, score_before, score_after } = found;
    await post(pathOf(kind, ''), { kind: kind.name, name, spec: { steps, loads, score_before, score_after } });
    await post(pathOf(kind, '', name, 'start'));
    setFound(null);
    notice(`${name} begins`);
    await read();
  });
  return html`<section class="panel broad"><h2>Plan</h2><${ProblemBox} error=${error} />
      <div class="row"><button type="button" disabled=${busy || !may('report:create', '')} onClick=${plan}>${busy ? 'Asking…' : 'Plan now'}</button>
        ${found?.steps.length > 0 && html`<button type="button" class="main-action" disabled=${busy || !may('rebalanceplan:start', '')} onClick=${apply}>Apply ${found.steps.length} ${found.steps.length === 1 ? 'migration' : 'migrations'}</button>`}</div>
      ${found && !found.steps.length && html`<${Empty} words=${`${found.message ? 'No migration of another VM evens out load' : 'Load is even enough'}: score ${found.score_before.toFixed(2)}.`} />`}
      ${found?.message && html`<p class="soft" role="status">${found.message}</p>`}
      ${found?.steps.length > 0 && html`<${PlanView} spec=${found} />`}
      <${Command} words="weft rebalance plan" /></section>
    <section><h2>Plans</h2>${plans.length ? plans.map((each) => html`<${Plan} key=${each.uid} plan=${each} kind=${kind} onDone=${read} />`) : html`<${Empty} words="There is no plan yet." command="weft rebalance auto on" />`}</section>`;
}

function Plan({ plan, kind, onDone }) {
  const phase = plan.status?.phase ?? 'Proposed';
  const verb = phase === 'Proposed' ? 'start' : UNDOABLE.has(phase) ? 'undo' : '';
  const act = async () => {
    try { await post(pathOf(kind, '', plan.name, verb)); notice(`${plan.name}: ${verb === 'undo' ? 'all goes back' : 'it begins'}`); onDone(); } catch (error) { noticeOf(error); }
  };
  return html`<details class="panel broad"><summary><b class="mono">${plan.name}</b> <${State} phase=${phase} health=${HEALTH[phase]} /> <span class="soft">${plan.status?.message || `${plan.spec.steps.length} migrations`}</span></summary>
    <div class="row">${verb && html`<button type="button" disabled=${!may(`rebalanceplan:${verb}`, '')} onClick=${act}>${verb === 'undo' ? 'Undo' : 'Apply'} ${plan.name}</button>`}
      <a href=${toObject({ kind: kind.name, name: plan.name })}>all of ${plan.name}</a></div>
    <${PlanView} spec=${plan.spec} states=${plan.status?.steps} /></details>`;
}

const HEALTH = { Proposed: 'waiting', Running: 'changing', Undoing: 'changing', Refused: 'failed', Done: 'ended', Undone: 'ended' };

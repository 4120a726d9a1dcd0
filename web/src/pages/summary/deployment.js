// A deployment: how its rollout goes, its instances, its revisions with what runs and who gets the requests, and its services.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../../html.js';
import { get, pathOf } from '../../api.js';
import { moment, number, size } from '../../format.js';
import { health, kinds, may } from '../../state.js';
import { ownEvents, returns, summary } from '../../stream.js';
import { actionsOf, missing, startAction } from '../../ui/actions.js';
import { EventList } from '../../ui/events.js';
import { Age, Name, State } from '../../ui/parts.js';
import { Describe, Internals } from './object.js';

const OF = 'weft/deployment';
const REVISION = 'weft/revision';
const SHOWN = 50; // instances
const list = (name, project) => get(`${pathOf(kinds.value.get(name), project)}?limit=500`).then((page) => page.items, () => []);

export function DeploymentSummary({ kind, obj, row }) {
  const { spec, status = {} } = obj;
  const [instances, setInstances] = useState(null);
  const [services, setServices] = useState(null);
  const phases = JSON.stringify([summary.value?.phases?.[spec.workload], summary.value?.phases?.service]);
  useEffect(() => {
    let isOver = false;
    list(spec.workload, row.project).then((items) => { if (!isOver) setInstances(items.filter((each) => each.labels?.[OF] === row.name)); });
    list('service', row.project).then((items) => { if (!isOver) setServices(items); });
    return () => { isOver = true; };
  }, [row.uid, obj.revision, phases, returns.value]);
  const labels = { ...spec.labels, [OF]: row.name };
  const leading = (services ?? []).filter((each) => Object.entries(each.spec.selector ?? {}).every(([key, value]) => labels[key] === value));
  return html`<${Rollout} spec=${spec} status=${status} />
    <${Revisions} kind=${kind} row=${row} status=${status} instances=${instances ?? []} hasService=${leading.length > 0} />
    <${Instances} found=${instances} kind=${spec.workload} />
    <div class="panels"><${Services} found=${services && leading} labels=${spec.labels ?? {}} />
      <section class="panel short"><h2>Newest events</h2><${EventList} events=${ownEvents.value.slice(-6)} without /></section></div>
    <${Describe} kind=${kind} row=${row} /><${Internals} kind=${kind} obj=${obj} row=${row} />`;
}

function Rollout({ spec, status }) {
  const wanted = spec.autoscale ? status.replicas : spec.replicas;
  return html`<section class="panel">
    <p><b>${status.ready ?? 0} of ${wanted ?? 0}</b> ready, <b>${status.updated ?? 0}</b> of revision ${status.revision ?? 0}, strategy ${status.strategy ?? spec.strategy?.type ?? 'rolling'}
      ${spec.autoscale ? html`; ${status.scaling || 'scaled by a figure'}` : ''}</p>
    ${status.message && html`<p>${status.message}</p>`}${status.verdict && html`<p>${status.verdict}</p>`}
    ${status.awaits && html`<p>It waits for a person: Resume goes on, Undo goes back.</p>`}
    ${status.started_at > 0 && html`<p class="soft">The rollout began ${moment(status.started_at)}${status.ended_at ? ` and ended ${moment(status.ended_at)}` : ''}.</p>`}</section>`;
}

function Revisions({ kind, row, status, instances, hasService }) {
  const revisions = [...(status.revisions ?? [])].sort((a, b) => b.number - a.number);
  const split = new Map((status.split ?? []).map((each) => [each.revision, each.per_mille / 10]));
  const running = (number_) => instances.filter((each) => each.labels[REVISION] === String(number_)).length;
  const undo = actionsOf([row]).find((action) => action.name === 'undo');
  const lacks = undo && missing(undo, [row]);
  const requests = (one) => (split.size ? `${number(split.get(one.number) ?? 0, 1)} %` : hasService && running(one.number) ? 'shared by all ready ones' : '–');
  return html`<section class="panel"><h2>Revisions</h2><div class="scroll whole" tabindex="0" role="region" aria-label="Revisions"><table>
    <thead><tr><th class="number">REVISION</th><th>IMAGE</th><th>SIZE</th><th class="number">INSTANCES</th><th>REQUESTS</th><th>OUTCOME</th><th>AUTHOR</th><th>SINCE</th><th>GO BACK</th></tr></thead>
    <tbody>${revisions.map((one) => html`<tr key=${one.number}><td class="number">${one.number}</td><td class="mono">${one.template.image ?? '–'}</td>
      <td>${one.template.cpu ? `${number(one.template.cpu, 2)} cores, ${size(one.template.memory)}` : '–'}</td><td class="number">${running(one.number)}</td><td>${requests(one)}</td>
      <td>${one.outcome || (one.number === status.revision ? 'goes on' : '–')}${one.number === status.stable ? ', stable' : ''}</td><td>${one.author || '–'}</td><td>${one.created_at ? html`<${Age} since=${one.created_at} />` : '–'}</td>
      <td>${one.number !== status.revision && undo && html`<button type="button" class="plain" disabled=${Boolean(lacks)} title=${lacks ? `you lack the permission ${lacks}` : ''} onClick=${() => startAction(undo, [row], { revision: String(one.number) })}>to ${one.number}…</button>`}</td></tr>`)}</tbody></table></div></section>`;
}

function Instances({ found, kind }) {
  if (!found) return html`<p class="soft">Reading instances…</p>`;
  const rows = [...found].sort((a, b) => Number(b.labels[REVISION] ?? 0) - Number(a.labels[REVISION] ?? 0) || a.name.localeCompare(b.name, 'en', { numeric: true }));
  return html`<section class="panel"><h2>Instances (${found.length})</h2>
    ${!rows.length && html`<p class="soft">${may(`${kind}:list`, '') ? 'None yet.' : `None that you may list (${kind}:list).`}</p>`}
    ${rows.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Instances"><table>
      <thead><tr><th>NAME</th><th>PHASE</th><th class="number">REVISION</th><th>NODE</th><th>ADDRESS</th><th>NOTE</th></tr></thead>
      <tbody>${rows.slice(0, SHOWN).map((each) => html`<tr key=${each.uid}><td><${Name} row=${each} /></td><td><${State} phase=${each.status?.phase} health=${health.value[each.status?.phase]} /></td>
        <td class="number">${each.labels[REVISION] ?? '–'}</td><td>${each.status?.node ? html`<${Name} row=${{ kind: 'node', name: each.status.node }} />` : '–'}</td><td class="mono">${each.status?.address || '–'}</td><td>${each.status?.message}</td></tr>`)}</tbody></table></div>`}
    ${rows.length > SHOWN && html`<p class="more">and ${rows.length - SHOWN} more</p>`}</section>`;
}

function Services({ found, labels }) {
  const words = Object.entries(labels).map(([key, value]) => `${key}=${value}`).join(', ');
  return html`<section class="panel"><h2>Services</h2>
    ${found && !found.length && html`<p class="soft">No service leads to its instances${words ? ` (labels ${words})` : ', which have no labels of their own'}; so no requests are split.</p>`}
    ${found?.length > 0 && html`<table class="plain"><thead><tr><th>NAME</th><th>PHASE</th><th>PORTS</th><th>ADDRESS</th></tr></thead><tbody>${found.map((each) => html`<tr key=${each.uid}><td><${Name} row=${each} /></td>
      <td><${State} phase=${each.status?.phase} health=${health.value[each.status?.phase]} /></td><td class="mono">${(each.spec.ports ?? []).join(', ')}</td><td class="mono">${each.status?.address || '–'}</td></tr>`)}</tbody></table>`}</section>`;
}

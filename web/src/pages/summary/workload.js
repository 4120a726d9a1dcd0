// A VM or a container as people ask for it: what it uses, where it is and why, its disks, networks, snapshots, backups and events;
// then the internals.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../../html.js';
import { get, pathOf } from '../../api.js';
import { moment, number, size, span } from '../../format.js';
import { useHistory } from '../../history.js';
import { health, kinds, link, may, toObject } from '../../state.js';
import { ownEvents, returns } from '../../stream.js';
import { readStream } from '../../tabs/stream.js';
import { EventList } from '../../ui/events.js';
import { Age, Name, State } from '../../ui/parts.js';
import { Spark } from '../../ui/spark.js';
import { Describe, Internals, Reason } from './object.js';

const SHOWN = 6; // snapshots, backups, events

export function WorkloadSummary({ kind, obj, row }) {
  return html`<${Reason} status=${obj.status} />
    <div class="masonry">
      <${Use} kind=${kind} obj=${obj} row=${row} />
      <${Place} obj=${obj} row=${row} />
      <${Disks} obj=${obj} />
      <${Networks} obj=${obj} />
      ${kind.name === 'vm' && html`<${Copies} name="snapshot" row=${row} obj=${obj} title="Snapshots" at=${(each) => each.created_at} more=${link(['storage'], { kind: 'snapshot', filter: row.name })} />`}
      ${kind.name === 'vm' && html`<${Copies} name="backup" row=${row} obj=${obj} title="Backups" at=${(each) => each.status?.taken_at || each.created_at} more=${link(['backups'], { filter: row.name })} />`}
      <section class="panel short"><div class="row"><h2 class="grow">Newest events</h2><a href=${toObject(row, 'events')}>all</a></div><${EventList} events=${ownEvents.value.slice(-SHOWN)} without /></section>
    </div>
    <${Describe} kind=${kind} row=${row} />
    <${Internals} kind=${kind} obj=${obj} row=${row} />`;
}

// The last hour, of the history; without one, of its node's samples. What had its name before it isn't its past.
function useSeries(kind, row, runs, since) {
  const kept = useHistory(runs ? `{__name__=~"weft_guest_(cpu_cores|memory_bytes)",project="${row.project}",kind="${row.kind}",name="${row.name}"}` : '');
  const [sampled, setSampled] = useState(null);
  const [problem, setProblem] = useState('');
  const asks = runs && kept?.length === 0 && may(`${kind.name}:metrics`, row.project);
  useEffect(() => {
    if (!asks) return undefined;
    let isOver = false;
    readStream(row, 'metrics', { time_range: 3600, granularity: 60 }).then((text) => !isOver && setSampled(JSON.parse(text).series), (error) => !isOver && setProblem(error.message));
    return () => { isOver = true; };
  }, [row.uid, asks, returns.value]);
  const own = (series) => series && { ...series, points: series.points.filter(([at]) => at >= since) };
  const of = (metric, pattern) => own(kept?.find((each) => each.labels.__name__ === metric)) ?? sampled?.find((each) => pattern.test(each.name));
  return { cpu: of('weft_guest_cpu_cores', /^cpu$/), memory: of('weft_guest_memory_bytes', /^memory(\.(used|guest|resident))?$/), state: !runs ? 'It does not run, so it uses nothing.' : problem || (kept?.length || sampled ? '' : asks || !kept ? 'Reading…' : `You lack the permission ${kind.name}:metrics.`) };
}

function Use({ kind, obj, row }) {
  const runs = Boolean(obj.status?.node) && health.value[obj.status.phase] === 'running';
  const { cpu, memory, state } = useSeries(kind, row, runs, obj.created_at ?? 0);
  const has = obj.status?.resources ?? {};
  const asked = obj.spec ?? {};
  const differs = (part) => has[part] != null && asked[part] && has[part] !== asked[part];
  const cores = (value) => `${number(value, value < 0.1 ? 3 : 2)} ${value === 1 ? 'core' : 'cores'}`;
  return html`<section class="panel"><div class="row"><h2 class="grow">Use in the last hour</h2><a href=${toObject(row, 'metrics')}>all metrics</a></div>
    <${Figure} title="CPU" series=${cpu} has=${has.cpu ?? asked.cpu} say=${cores} />
    <${Figure} title="memory on its node" series=${memory} has=${has.memory ?? asked.memory} say=${size} />
    ${['cpu', 'memory'].filter(differs).map((part) => html`<p key=${part} class="soft">${part}: ${part === 'cpu' ? cores(asked.cpu) : size(asked.memory)} is wanted and comes at a restart.</p>`)}
    <p class="soft" role="status">${state}</p></section>`;
}

function Figure({ title, series, has, say }) {
  const points = series?.points ?? [];
  const now = points.findLast((point) => point[1] != null)?.[1];
  const most = Math.max(...points.map((point) => point[1] ?? 0), 0);
  return html`<figure class="use"><figcaption><b>${title}</b> ${now == null ? '–' : say(now)} <span class="soft">of ${has ? say(has) : 'no limit'}${now == null ? '' : `; at most ${say(most)}`}</span></figcaption>
    <${Spark} points=${points} line=${has ?? null} tall words=${`${title} in the last hour: ${say(now ?? 0)} now, ${say(most)} at most`} /></figure>`;
}

function Place({ obj, row }) {
  const { status = {}, spec = {} } = obj;
  const [decision, setDecision] = useState(null);
  useEffect(() => {
    let isOver = false;
    get(pathOf(kinds.value.get('decision'), row.project, `${row.kind}.${row.name}`)).then((found) => !isOver && setDecision(found.spec), () => !isOver && setDecision(null));
    return () => { isOver = true; };
  }, [row.uid, status.node, status.phase, returns.value]);
  const verdicts = decision?.verdicts ?? [];
  const second = verdicts.find((each) => each.outcome === 'fits');
  const refused = verdicts.filter((each) => each.outcome === 'refused').length;
  return html`<section class="panel"><div class="row"><h2 class="grow">Why here</h2><a href=${toObject(row, 'why')}>verdicts and what if</a></div><dl class="facts">
    <dt>node</dt><dd>${status.node ? html`<a class="mono" href=${toObject({ kind: 'node', name: status.node })}>${status.node}</a>` : 'on none yet'}</dd>
    ${status.started_at > 0 && html`<dt>runs since</dt><dd>${moment(status.started_at)} (<${Age} since=${status.started_at} />)${status.restarts ? `; restarted ${status.restarts} times` : ''}</dd>`}
    ${decision && html`<dt>because</dt><dd>${decision.error ? `${decision.error}: ${decision.message}` : `policy ${decision.named || decision.policy} over ${decision.nodes} ${decision.nodes === 1 ? 'node' : 'nodes'}`}${second ? `; runner-up ${second.node}` : ''}${refused ? `; ${refused} refused` : ''}</dd>`}
    <dt>image</dt><dd class="mono">${spec.image}</dd>
    <dt>size</dt><dd>${number(spec.cpu, 2)} ${spec.cpu === 1 ? 'core' : 'cores'}, ${size(spec.memory)} of memory</dd>
    ${status.resize_limits?.cpu > 0 && html`<dt>may grow to</dt><dd>${[`${status.resize_limits.cpu} cores`, `${size(status.resize_limits.memory)} of memory`, `${status.resize_limits.volumes} volumes`, `${status.resize_limits.networks} networks`].join(', ')}, without a restart</dd>`}
    <dt>restarts</dt><dd>${{ always: 'always', never: 'never', 'on-failure': 'after a failure' }[spec.restart] ?? spec.restart}; it has ${span(spec.grace ?? 0)} to shut down</dd>
    ${obj.actions?.restore && html`<dt>restored</dt><dd>from snapshot ${obj.actions.restore.snapshot}</dd>`}
    ${obj.owner && html`<dt>belongs to</dt><dd><a class="mono" href=${toObject(obj.owner)}>${obj.owner.kind}/${obj.owner.name}</a></dd>`}</dl></section>`;
}

function Disks({ obj }) {
  const { status = {}, spec = {} } = obj;
  const disk = status.resources?.disk || spec.disk;
  const volumes = spec.volumes ?? (spec.mounts ?? []).map((each) => String(each).split(':')[0]);
  return html`<section class="panel"><h2>Disks</h2><table class="plain"><thead><tr><th>DISK</th><th class="number">SIZE</th><th>WHERE</th></tr></thead><tbody>
    <tr><td>root</td><td class="number">${disk ? size(disk) : 'as the image'}</td><td>pool ${status.pool || spec.pool || 'local'}</td></tr>
    ${volumes.map((name) => html`<${Volume} key=${name} name=${name} project=${obj.project} />`)}</tbody></table></section>`;
}

function Volume({ name, project }) {
  const [found, setFound] = useState(null);
  useEffect(() => { get(pathOf(kinds.value.get('volume'), project, name)).then(setFound, () => {}); }, [name, returns.value]);
  return html`<tr><td><${Name} row=${{ kind: 'volume', project, name }} /></td><td class="number">${found ? size(found.spec.size) : '–'}</td><td>${found ? `pool ${found.spec.pool}` : ''}</td></tr>`;
}

function Networks({ obj }) {
  const { status = {}, spec = {} } = obj;
  const names = [...new Set([...(spec.networks ?? []).map((each) => String(each).split(/[=:]/)[0]), ...Object.keys(status.addresses ?? {})])];
  const of = (name) => { const [first, second] = name.split('/'); return { kind: 'network', project: second ? first : obj.project, name: second ?? first }; };
  return html`<section class="panel"><h2>Networks</h2>
    ${names.length ? html`<table class="plain"><thead><tr><th>NETWORK</th><th>ADDRESS</th></tr></thead><tbody>${names.map((name) => html`<tr key=${name}><td><${Name} row=${of(name)}>${name}<//></td><td class="mono">${status.addresses?.[name] ?? '–'}</td></tr>`)}</tbody></table>` : html`<p class="soft">It is in no network.</p>`}
    ${spec.publish?.length > 0 && html`<p>published: <span class="mono">${spec.publish.join(', ')}</span></p>`}
    ${spec.security_groups?.length > 0 && html`<p>security groups: ${spec.security_groups.map((name) => html`<${Name} key=${name} row=${{ kind: 'securitygroup', project: obj.project, name }} /> `)}</p>`}</section>`;
}

// Its snapshots, or its backups, the newest first.
function Copies({ name, row, obj, title, at, more }) {
  const [found, setFound] = useState(null);
  const kind = kinds.value.get(name);
  const allowed = kind && may(`${name}:list`, row.project);
  useEffect(() => {
    if (!allowed) return undefined;
    let isOver = false;
    get(`${pathOf(kind, row.project)}?limit=500`).then((page) => { if (!isOver) setFound(page.items.filter((each) => each.spec.of === `${row.kind}/${row.name}`).sort((a, b) => String(at(b)).localeCompare(String(at(a))))); }, () => {});
    return () => { isOver = true; };
  }, [row.uid, allowed, obj.revision, ownEvents.value.length, returns.value]);
  if (!allowed) return null;
  return html`<section class="panel"><div class="row"><h2 class="grow">${title}${found?.length ? ` (${found.length})` : ''}</h2><a href=${more}>all</a></div>
    ${found?.length === 0 && html`<p class="soft">None yet.</p>`}
    ${found?.length > 0 && html`<table class="plain"><thead><tr><th>NAME</th><th>STATE</th><th class="number">AGE</th></tr></thead><tbody>${found.slice(0, SHOWN).map((each) => html`<tr key=${each.uid}>
      <td><${Name} row=${each} /></td><td><${State} phase=${each.status?.phase} health=${health.value[each.status?.phase]} /></td><td class="number"><${Age} since=${Date.parse(at(each)) / 1000 || at(each)} /></td></tr>`)}</tbody></table>`}</section>`;
}

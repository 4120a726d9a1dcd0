// The first page, which may stay open on a wall: what is wrong, how full the nodes are, what guests really used in the last hour, what
// changes now.
import { html } from '../html.js';
import { useEffect } from 'preact/hooks';
import { inUnit, many, number, size } from '../format.js';
import { useHistory } from '../history.js';
import { events, show, summary } from '../stream.js';
import { health, kinds, link, project } from '../state.js';
import { EventList } from '../ui/events.js';
import { AMOUNTS, NodeRows } from '../ui/nodes.js';
import { lazy } from '../ui/lazy.js';
import { Empty, Legend } from '../ui/parts.js';
import { ProblemList, Running } from '../ui/problems.js';
import { Spark } from '../ui/spark.js';

const CreateButton = lazy(() => import('../ui/create.js').then((part) => part.CreateButton), null);
const COUNTED = ['vm', 'container', 'deployment', 'job', 'function', 'service', 'volume', 'network', 'node'];
const WORKLOADS = ['vm', 'container', 'function', 'job'];
const MOST = { problems: 5, nodes: 8, operations: 5, events: 7 };

export function Overview() {
  useEffect(() => { show({ events: { project: project.value } }); }, [project.value]);
  const facts = summary.value;
  if (!facts) return html`<h1>Overview</h1><p class="soft">Loading…</p>`;
  const nodes = fullest(facts.nodes ?? []);
  const changing = (facts.operations ?? []).filter((each) => health.value[each.phase] !== 'waiting'); // that is under what is wrong
  return html`
    <div class="row"><h1>Overview</h1><span class="grow"></span><${Counts} phases=${facts.phases} /><${CreateButton} names=${['vm']} /></div>
    <div class="wall"><div>
      <${Problems} facts=${facts} />
      ${nodes.length > 0 && html`<section class="panel"><div class="row"><h2 class="grow">Nodes</h2><${Legend} /></div><${NodeRows} nodes=${nodes.slice(0, MOST.nodes)} />
        ${nodes.length > MOST.nodes && html`<p class="more"><a href="#/nodes">All ${nodes.length} nodes</a>; these are the fullest</p>`}</section>
        <${Hour} nodes=${nodes} />`}
    </div><div>
      <section class="panel"><h2>Changing now</h2><${Running} operations=${changing.slice(0, MOST.operations)} />
        ${(changing.length > MOST.operations || facts.operations_total > facts.operations?.length) && html`<p class="more"><a href="#/operations">All ${facts.operations_total} operations</a></p>`}</section>
      <section class="panel short"><h2>Newest events</h2><${EventList} events=${events.value.slice(-MOST.events)} /></section>
    </div></div>`;
}

const fullest = (nodes) => {
  const fill = (node) => Math.max(...Object.keys(AMOUNTS).map((part) => (node[part]?.capacity ? node[part].allocated / node[part].capacity : 0)));
  return [...nodes].sort((a, b) => (nodes.length > MOST.nodes ? fill(b) - fill(a) : 0) || a.name.localeCompare(b.name, 'en', { numeric: true }));
};

function Problems({ facts }) {
  const problems = facts.problems ?? [];
  if (!problems.length) return html`<p class="state running">Nothing is wrong.</p>`;
  const total = facts.problems_total ?? problems.length;
  return html`<section class="panel"><h2>What is wrong (${total})</h2><${ProblemList} problems=${problems.slice(0, MOST.problems)} />
    ${total > MOST.problems && html`<p class="more">and ${total - MOST.problems} more under <a href="#/alerts">Alerts</a></p>`}</section>`;
}

function Counts({ phases }) {
  const total = (by) => Object.values(by ?? {}).reduce((a, b) => a + b, 0);
  const shown = COUNTED.filter((name) => kinds.value.has(name) && total(phases?.[name]));
  if (!shown.length) return html`<${Empty} words="There is nothing here yet." command="weft vm create hello --image tiny" />`;
  return html`<nav class="counts" aria-label="How many there are">${shown.map((name) => {
    const kind = kinds.value.get(name);
    const count = total(phases[name]);
    return html`<a key=${name} title=${Object.entries(phases[name]).map(([phase, many]) => `${phase} ${many}`).join(', ')}
      href=${WORKLOADS.includes(name) ? link(['workloads'], { kind: name }) : link(['k', kind.plural])}><b>${count.toLocaleString('en')}</b> ${count === 1 ? kind.title : many(kind)}</a>`;
  })}</nav>`;
}

// What all nodes' guests used together, beside what is given to them (dashed).
function Hour({ nodes }) {
  const found = useHistory('label_replace(sum(weft_node_cpu_used_cores), "of", "cpu", "", "") or label_replace(sum(weft_node_memory_used_bytes), "of", "memory", "", "") or label_replace(sum(weft_node_disk_used_bytes), "of", "disk", "", "")');
  if (!found?.length) return null;
  return html`<section class="panel"><h2>Used in the last hour</h2><div class="hour">${Object.entries(AMOUNTS).map(([part, [title, unit]]) => {
    const points = found.find((each) => each.labels.of === part)?.points ?? [];
    if (points.length < 2) return null;
    const say = (value) => (unit === 'cores' ? number(value, 2) : size(value));
    const sum = (key) => nodes.reduce((all, node) => all + (node[part]?.[key] ?? 0), 0);
    const most = Math.max(...points.map((point) => point[1]));
    return html`<figure key=${part}><figcaption><b>${title}</b> ${inUnit(points.at(-1)[1], unit === 'cores' ? '' : unit)} <span class="soft">of ${say(sum('capacity'))}; at most ${say(most)}</span></figcaption>
      <${Spark} points=${points} line=${sum('allocated')} tall words=${`${title} used in the last hour: ${say(points.at(-1)[1])} now, ${say(most)} at most; ${say(sum('allocated'))} given`} /></figure>`;
  })}</div></section>`;
}

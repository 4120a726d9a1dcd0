// The network between the nodes: nodes by zone and rack, what their links have, and who talks to whom over them.
import { useEffect, useMemo, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get } from '../api.js';
import { age, number, percent, size } from '../format.js';
import { kinds, link as toPage, may, project, route, setQuery, toObject } from '../state.js';
import { returns } from '../stream.js';
import { Command, Empty, ProblemBox } from '../ui/parts.js';
import { lazy } from '../ui/lazy.js';

const Traffic = lazy(() => import('../ui/traffic.js').then((part) => part.Traffic));
const PERMISSION = 'networktopology:get';
const AGAIN_MS = 15_000;
const MOST = { nodes: 300, lines: 60, rows: 200, name: 16 };
const BOX = { width: 132, height: 46, gap: 14, pad: 12, head: 24 };
const WIDTH = 1120;

export function NetworkMap() {
  return html`<h1>Network map</h1>
    ${may(PERMISSION, '') ? html`<${Nodes} />` : html`<p class="soft">The network between the nodes is shown to people who have the permission <code>${PERMISSION}</code>; what your workloads send each other is below.</p><${Talkers} />`}`;
}

function Nodes() {
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  const [traffic, setTraffic] = useState([]);
  useEffect(() => {
    let isOver = false;
    let timer = 0;
    const read = async () => {
      try {
        const answer = await get('/v1/topology');
        if (!isOver) { setFound(answer); setError(null); }
      } catch (problem) { if (!isOver) setError(problem); }
      if (!isOver) timer = setTimeout(read, AGAIN_MS);
    };
    read();
    return () => { isOver = true; clearTimeout(timer); };
  }, []);
  return html`<${ProblemBox} error=${error} />
    ${!found && !error && html`<p class="soft">Reading the network…</p>`}
    ${found && !found.nodes.length && html`<${Empty} words="No node has joined yet." command="weft node invite" />`}
    ${found?.nodes.length > 0 && html`<${Drawing} nodes=${found.nodes.slice(0, MOST.nodes)} links=${found.links} traffic=${traffic} total=${found.nodes.length} leftOut=${found.left_out ?? 0} />`}
    <${Talkers} onFound=${setTraffic} />`;
}

function Drawing({ nodes, links, traffic, total, leftOut }) {
  const chosen = nodes.some((node) => node.name === route.value.query.node) ? route.value.query.node : '';
  const { places, groups, height } = useMemo(() => layOut(nodes), [nodes]);
  const known = links.filter((link) => places.has(link.source) && places.has(link.target));
  const own = chosen ? known.filter((link) => link.source === chosen || link.target === chosen) : known;
  const lines = own.length <= MOST.lines || chosen ? own.slice(0, MOST.nodes) : [];
  const rows = [...own].sort((one, other) => (other.latency_ms ?? -1) - (one.latency_ms ?? -1)).slice(0, MOST.rows);
  const talk = betweenNodes(traffic, places);
  const most = Math.max(1, ...talk.map((each) => each.bytes));
  return html`<section class="panel broad"><h2>Nodes by zone and rack${total > nodes.length ? ` (${nodes.length} of ${total})` : ''}</h2>
    <svg class="topology" style=${{ maxWidth: `${WIDTH}px` }} viewBox=${`0 0 ${WIDTH} ${height}`} role="group" aria-label=${`${nodes.length} nodes in ${groups.length} places with ${known.length} links`}>
      ${groups.map((group) => html`<g key=${group.name}><rect class="place" x=${group.x} y=${group.y} width=${group.width} height=${group.height} rx="6" /><text x=${group.x + BOX.pad} y=${group.y + 17} style=${{ fill: 'var(--soft)' }}>${cut(group.name, 18 * group.columns)}</text></g>`)}
      ${lines.map((link) => html`<line key=${`${link.source} ${link.target}`} class=${`link ${link.measured ? '' : 'estimated'}`} ...${ends(places, link)} stroke-width=${1 + Math.min(4, Math.log10(1 + (link.bandwidth_mbps ?? 0) / 100))}><title>${tell(link)}</title></line>`)}
      ${talk.map((each) => html`<line key=${`talk ${each.source} ${each.target}`} class="talk" ...${ends(places, each)} stroke-width=${2 + 6 * (each.bytes / most)}><title>${each.source} and ${each.target} exchanged ${size(each.bytes)}</title></line>`)}
      ${chosen && lines.length <= 24 && lines.map((link) => html`<text key=${`label ${link.source} ${link.target}`} ...${labelAt(places, link, chosen)} class="label" text-anchor="middle">${short(link)}</text>`)}
      ${nodes.map((node) => { const [x, y] = places.get(node.name); return html`<a key=${node.name} href=${toPage(['map'], node.name === chosen ? {} : { node: node.name })} aria-current=${node.name === chosen}>
        <title>${node.name}</title><rect class=${`box ${node.name === chosen ? 'chosen' : ''}`} x=${x} y=${y} width=${BOX.width} height=${BOX.height} rx="4" />
        <text x=${x + 8} y=${y + 18}>${cut(node.name, MOST.name)}</text><text x=${x + 8} y=${y + 36} style=${{ fill: 'var(--soft)' }}>${about(node)}</text></a>`; })}
    </svg>
    <p class="soft">${lines.length ? 'A line is a link, dashed where it is estimated.' : 'Choose a node to see its links: all of them at once would hide each other.'}${talk.length ? ' Broad: what workloads exchanged.' : ''}</p>
    ${!known.length && html`<p>No link is known yet: nodes measure each other with their heartbeats, within a minute after they have joined.</p>`}
    ${rows.length > 0 && html`<div class="row"><h2 class="grow">${chosen ? html`Links of <bdi>${chosen}</bdi>` : 'Links'}, the slowest first</h2>${chosen && html`<button type="button" class="chip" aria-pressed="true" onClick=${() => setQuery({ node: '' })}>only ${cut(chosen, 40)} ✕</button>`}</div>
      <div class="scroll whole" tabindex="0" role="region" aria-label="Links"><table><thead><tr><th>SOURCE</th><th>TARGET</th><th class="number">ROUND TRIP</th><th class="number">BANDWIDTH</th><th class="number">IN USE</th><th>AGE</th><th>KNOWN</th></tr></thead>
        <tbody>${rows.map((link) => html`<tr key=${`${link.source} ${link.target}`}><td><${End} name=${link.source} nodes=${nodes} /></td><td><${End} name=${link.target} nodes=${nodes} /></td>
          <td class="number">${link.latency_ms == null ? '–' : `${number(link.latency_ms, 2)} ms`}</td><td class="number">${rate(link.bandwidth_mbps)}</td><td class="number">${link.utilisation == null ? '–' : percent(link.utilisation)}</td>
          <td>${link.age_seconds == null ? '–' : age(link.age_seconds)}</td><td>${link.declared ? 'declared' : link.measured ? 'measured' : 'estimated'}</td></tr>`)}</tbody></table></div>`}
    ${(own.length > rows.length || leftOut > 0) && html`<p class="soft">and ${own.length - rows.length + leftOut} more: <code>weft network topology -o json</code></p>`}
    <${Command} words="weft network topology" />
  </section>`;
}

// Who talks to whom, of the workloads that people may see.
function Talkers({ onFound }) {
  const [guests, setGuests] = useState(null);
  const where = project.value ? `/v1/projects/${encodeURIComponent(project.value)}` : '/v1';
  useEffect(() => {
    let isOver = false;
    Promise.all(['vms', 'containers'].map((plural) => get(`${where}/${plural}?limit=500`).then((page) => page.items, () => []))).then((found) => { if (!isOver) setGuests(found.flat()); });
    return () => { isOver = true; };
  }, [where, returns.value]);
  if (!guests) return null;
  if (!guests.some((guest) => guest.status?.node)) return html`<p class="soft">No workload runs${project.value ? ` in ${project.value}` : ''}: nobody talks to anybody.</p>`;
  return html`<${Traffic} guests=${guests} onFound=${(traffic, nameOf) => onFound?.(placed(traffic, guests, nameOf))} />`;
}

// What workloads exchanged, with the nodes on which they are.
function placed(traffic, guests, nameOf) {
  const nodes = new Map(guests.map((guest) => [nameOf(guest), guest.status?.node]));
  return traffic.map((one) => ({ source: nodes.get(one.source), target: nodes.get(one.destination), bytes: one.bytes })).filter((one) => one.source && one.target && one.source !== one.target);
}

function betweenNodes(traffic, places) {
  const sums = new Map();
  for (const { source, target, bytes } of traffic) {
    if (!places.has(source) || !places.has(target)) continue;
    const [one, other] = [source, target].sort();
    const key = `${one} ${other}`;
    sums.set(key, { source: one, target: other, bytes: (sums.get(key)?.bytes ?? 0) + bytes });
  }
  return [...sums.values()].sort((one, other) => other.bytes - one.bytes).slice(0, MOST.lines);
}

const placeOf = (node) => [node.zone, node.rack].filter(Boolean).join(' / ') || (['switch', 'router'].includes(node.type) ? 'devices' : 'without zone and rack');

// A box for each node, in a box for each place; places from left to right, then below.
export function layOut(nodes) {
  const members = new Map();
  for (const node of nodes) members.set(placeOf(node), [...(members.get(placeOf(node)) ?? []), node]);
  const places = new Map();
  const groups = [];
  let [x, y, tallest] = [0, 0, 0];
  for (const [name, of] of [...members].sort(([one], [other]) => one.localeCompare(other))) {
    const columns = Math.min(7, Math.max(1, Math.ceil(Math.sqrt(of.length))));
    const width = columns * (BOX.width + BOX.gap) - BOX.gap + 2 * BOX.pad;
    const height = BOX.head + Math.ceil(of.length / columns) * (BOX.height + BOX.gap) - BOX.gap + BOX.pad;
    if (x > 0 && x + width > WIDTH) { [x, y, tallest] = [0, y + tallest + 40, 0]; }
    of.forEach((node, index) => places.set(node.name, [x + BOX.pad + (index % columns) * (BOX.width + BOX.gap), y + BOX.head + Math.floor(index / columns) * (BOX.height + BOX.gap)]));
    groups.push({ name, x, y, width, height, columns });
    x += width + 40;
    tallest = Math.max(tallest, height);
  }
  return { places, groups, height: y + tallest + 4 };
}

const middle = ([x, y]) => [x + BOX.width / 2, y + BOX.height / 2];
function ends(places, link) {
  const [[x1, y1], [x2, y2]] = [middle(places.get(link.source)), middle(places.get(link.target))];
  return { x1, y1, x2, y2 };
}
// Beside the other end: there the links of the chosen node are far apart.
function labelAt(places, link, chosen) {
  const [x, y] = places.get(link.source === chosen ? link.target : link.source);
  return { x: x + BOX.width / 2, y: y + BOX.height + 12 };
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const rate = (mbps) => (mbps == null ? '–' : mbps >= 1000 ? `${number(mbps / 1000, 1)} Gbit/s` : `${number(mbps, mbps < 10 ? 1 : 0)} Mbit/s`);
const short = (link) => [link.latency_ms == null ? '' : `${number(link.latency_ms, 2)} ms`, link.bandwidth_mbps == null ? '' : rate(link.bandwidth_mbps)].filter(Boolean).join(', ');
const tell = (link) => `${link.source} to ${link.target}: ${short(link) || 'nothing is known'}${link.utilisation == null ? '' : `, ${percent(link.utilisation)} in use`}`;
const about = (node) => (node.type === 'place' ? `${node.nodes} nodes` : node.type !== 'host' && node.type ? node.type : node.online === false ? 'offline' : node.sent_mbps == null ? 'online' : `↑ ${rate(node.sent_mbps)}`);

const End = ({ name, nodes }) => (kinds.value.has('node') && nodes.some((node) => node.name === name && (node.type ?? 'host') === 'host') ? html`<a class="mono" href=${toObject({ kind: 'node', name })}><bdi>${cut(name, 63)}</bdi></a>` : html`<bdi class="mono">${cut(name, 63)}</bdi>`);

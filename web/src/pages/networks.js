// Networks as a drawing: each network is a line, the guests in it hang on it, and those in several join them. What a guest sends and
// receives now makes its branch broad.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, query } from '../api.js';
import { size } from '../format.js';
import { project, toObject } from '../state.js';
import { returns, summary } from '../stream.js';
import { CreateButton } from '../ui/create.js';
import { lazy } from '../ui/lazy.js';
import { Table } from '../ui/table.js';

const Traffic = lazy(() => import('../ui/traffic.js').then((part) => part.Traffic));
const MOST = 60; // guests in the drawing: more say nothing
const COLOURS = ['--accent', '--changing', '--degraded', '--unknown', '--running', '--failed'];

export function Networks() {
  return html`<div class="row"><h1 class="grow">Networks</h1><${CreateButton} names=${['network']} /></div>
    <${Topology} /><${Table} names=${['network']} empty="No networks yet." command="weft network create lan --cidr 10.20.0.0/24" />`;
}

function Topology() {
  const [facts, setFacts] = useState(null);
  const [rates, setRates] = useState(new Map());
  const changes = JSON.stringify(summary.value?.phases ?? {});
  const where = project.value ? `/v1/projects/${encodeURIComponent(project.value)}` : '/v1';
  useEffect(() => {
    let isOver = false;
    Promise.all(['networks', 'vms', 'containers'].map((plural) => get(`${where}/${plural}?limit=500`).then((page) => page.items, () => []))).then(([networks, ...guests]) => {
      if (!isOver) setFacts({ networks, guests: guests.flat() });
    });
    return () => { isOver = true; };
  }, [where, changes, returns.value]);
  useEffect(() => {
    let isOver = false;
    const read = async () => {
      try {
        const words = query({ query: 'sum by (project, kind, name) (rate({__name__=~"weft_guest_network_(received|sent)_bytes_total"}[1m]))' });
        const found = await get(`/api/v1/query?${words}`);
        if (!isOver) setRates(new Map((found.data?.result ?? []).map(({ metric, value }) => [`${metric.kind}/${metric.project}/${metric.name}`, Number(value[1])])));
      } catch { /* no database, or no such series yet: the drawing stays without rates */ }
    };
    read();
    const timer = setInterval(read, 5000);
    return () => { isOver = true; clearInterval(timer); };
  }, []);
  if (!facts) return html`<p class="soft">Reading networks…</p>`;
  const joined = facts.guests.filter((guest) => !guest.status?.ended).map((guest) => ({ guest, networks: networksOf(guest) })).filter((each) => each.networks.length);
  const names = [...new Set([...facts.networks.map((network) => `${network.project}/${network.name}`), ...joined.flatMap((each) => each.networks)])].slice(0, 12);
  const shown = joined.filter((each) => each.networks.some((name) => names.includes(name)))
    .sort((a, b) => names.indexOf(a.networks[0]) - names.indexOf(b.networks[0]) || a.guest.name.localeCompare(b.guest.name)).slice(0, MOST);
  if (!names.length) return null;
  const columns = Math.max(3, Math.min(8, shown.length || 3));
  const width = 40 + columns * 150;
  const lane = (name) => 28 + names.indexOf(name) * 36;
  const top = 28 + names.length * 36;
  const place = (index) => [40 + (index % columns) * 150, top + 24 + Math.floor(index / columns) * 84];
  const height = top + 24 + Math.max(1, Math.ceil(shown.length / columns)) * 84;
  return html`<section class="panel broad"><h2>Who is in which network${joined.length > shown.length ? ` (${shown.length} of ${joined.length} guests)` : ''}</h2>
    <svg class="topology" style=${{ maxWidth: `${width}px` }} viewBox=${`0 0 ${width} ${height}`} role="group" aria-label=${`${names.length} networks with ${shown.length} guests`}>
      ${names.map((name, index) => html`<g key=${name} style=${{ color: `var(${COLOURS[index % COLOURS.length]})` }}>
        <line class="lane" x1="16" x2=${width - 16} y1=${lane(name)} y2=${lane(name)} stroke="currentColor" />
        <text class="label" x="16" y=${lane(name) - 8}>${project.value ? name.split('/')[1] : name}  ${facts.networks.find((each) => `${each.project}/${each.name}` === name)?.spec.cidr ?? ''}</text></g>`)}
      ${shown.map(({ guest, networks }, index) => {
        const [x, y] = place(index);
        const rate = rates.get(`${guest.kind}/${guest.project}/${guest.name}`) ?? 0;
        return html`<g key=${guest.uid}>${networks.filter((name) => names.includes(name)).map((name, nic) => html`<path key=${name} fill="none" stroke=${`var(${COLOURS[names.indexOf(name) % COLOURS.length]})`}
            stroke-width=${1 + Math.min(7, Math.log10(1 + rate / 1000) * 2)} d=${branch(x, y, nic, index < columns, lane(name))} />`)}
          <a href=${toObject(guest)}><title>${guest.kind}/${guest.name}</title><rect class="box" x=${x} y=${y} width="136" height="52" rx="4" />
            <text x=${x + 8} y=${y + 20}>${guest.name.length > 18 ? `${guest.name.slice(0, 17)}…` : guest.name}</text>
            <text x=${x + 8} y=${y + 40} style=${{ fill: 'var(--soft)' }}>${guest.status?.address ?? guest.status?.phase ?? ''}${rate ? `  ${size(rate)}/s` : ''}</text></a></g>`;
      })}
    </svg></section><${Traffic} guests=${facts.guests} />`;
}

// From a guest's box up to its network's line; boxes of lower rows are reached beside those above them.
function branch(x, y, nic, isFirstRow, lane) {
  return isFirstRow ? `M${x + 20 + nic * 14} ${y}V${lane}` : `M${x} ${y + 12 + nic * 10}H${x - 4 - nic * 4}V${lane}`;
}

function networksOf(guest) {
  const own = (name) => (name.includes('/') ? name : `${guest.project}/${name}`);
  const addresses = Object.keys(guest.status?.addresses ?? {});
  const named = (guest.spec?.networks ?? guest.spec?.nics ?? []).map((each) => (typeof each === 'string' ? each.split(/[=:,]/)[0] : each.network)).filter(Boolean);
  return [...new Set((named.length ? named : addresses).map(own))];
}

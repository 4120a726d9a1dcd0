// Storage: pools with what is allocated and used, and the tables of volumes, snapshots, images and pools.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { many } from '../format.js';
import { get } from '../api.js';
import { health, kinds, may, route } from '../state.js';
import { KindChips } from '../ui/chips.js';
import { CreateButton } from '../ui/create.js';
import { Bar, Legend, Name, State } from '../ui/parts.js';
import { Table } from '../ui/table.js';
import { returns, summary } from '../stream.js';

const COMMANDS = { volume: 'weft volume create data --size 10G', snapshot: 'weft vm snapshot NAME --name before-update', image: 'weft image list', pool: 'weft storage list' };
const SHOWN = 24; // pools with a panel

export function Storage() {
  const known = Object.keys(COMMANDS).filter((name) => kinds.value.has(name));
  const kind = known.includes(route.value.query.kind) ? route.value.query.kind : 'volume';
  return html`<div class="row"><h1 class="grow">Storage</h1>${kind === 'volume' || kind === 'image' ? html`<${CreateButton} names=${[kind]} />` : ''}</div>
    ${may('pool:list', '') && html`<${Pools} />`}
    <${KindChips} names=${known} chosen=${kind} />
    <${Table} key=${kind} names=${[kind]} empty=${`No ${many(kinds.value.get(kind))} yet.`} command=${COMMANDS[kind]} />`;
}

// The fullest first.
function Pools() {
  const [pools, setPools] = useState([]);
  const known = JSON.stringify([summary.value?.phases?.pool, (summary.value?.nodes ?? []).map((node) => [node.name, node.disk?.used])]);
  useEffect(() => { get('/v1/pools?limit=200').then((page) => setPools(page.items), () => {}); }, [known, returns.value]);
  const fullness = ({ status: { capacity = 0, used = 0 } = {} }) => (capacity ? used / capacity : 0);
  const shown = [...pools].sort((a, b) => fullness(b) - fullness(a) || a.name.localeCompare(b.name)).slice(0, SHOWN);
  if (!shown.length) return null;
  return html`<section><div class="row"><h2 class="grow">Pools</h2><${Legend} /></div><div class="panels">${shown.map((pool) => {
    const { phase = 'Ready', capacity, given, used, message = '', nodes = 0 } = pool.status ?? {};
    return html`<div class="panel" key=${pool.uid}><div class="row"><${Name} row=${pool} /><${State} phase=${phase} health=${health.value[phase]} /><span class="grow"></span>
        <span class="soft">${nodes === 1 ? pool.status.node_names?.[0] : `${nodes} nodes`}</span></div>
      <${Bar} title=${pool.name} of=${{ capacity, allocated: given, used }} unit="bytes" />${message && html`<div class="soft">${message}</div>`}</div>`;
  })}</div></section>`;
}

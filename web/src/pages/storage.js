// Storage: pools of nodes with what is used, volumes, and images.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get } from '../api.js';
import { size } from '../format.js';
import { kinds, may, route, setQuery, toObject } from '../state.js';
import { CreateButton } from '../ui/create.js';
import { Bar } from '../ui/parts.js';
import { Table } from '../ui/table.js';
import { summary } from '../stream.js';

export function Storage() {
  const kind = ['volume', 'image'].includes(route.value.query.kind) ? route.value.query.kind : 'volume';
  return html`<div class="row"><h1 class="grow">Storage</h1><${CreateButton} names=${[kind]} /></div>
    ${may('node:list', '') && html`<${Pools} />`}
    <div class="row" role="group" aria-label="Kinds">${['volume', 'image'].map((name) => html`<button key=${name} type="button" class="chip" aria-pressed=${kind === name}
      onClick=${() => setQuery({ kind: name, phase: '', sort: '' })}>${kinds.value.get(name)?.title}s</button>`)}</div>
    <${Table} key=${kind} names=${[kind]} empty=${`No ${kind}s yet.`} command=${kind === 'volume' ? 'weft volume create data --size 10G' : 'weft image list'} />`;
}

function Pools() {
  const [nodes, setNodes] = useState([]);
  const known = (summary.value?.nodes ?? []).map((node) => node.name).join();
  useEffect(() => { get('/v1/nodes?limit=200').then((page) => setNodes(page.items), () => {}); }, [known]);
  const pools = nodes.flatMap((node) => (node.report?.pools ?? []).map((pool) => ({ node: node.name, ...pool })));
  const disks = new Map((summary.value?.nodes ?? []).map((node) => [node.name, node.disk]));
  return html`<section><h2>Disks of nodes</h2><div class="panels">${[...disks].slice(0, 24).map(([name, disk]) => html`<div class="panel" key=${name}>
    <a class="mono" href=${toObject({ kind: 'node', name })}><b>${name}</b></a><${Bar} title="disk" of=${disk} unit="bytes" />
    ${pools.filter((pool) => pool.node === name).map((pool) => html`<div key=${pool.name} class="row"><span class="mono">${pool.name}</span><span class="grow"></span>
      <span class="soft">${pool.problem || `${size(pool.free)} of ${size(pool.total)} free`}</span></div>`)}
    </div>`)}</div></section>`;
}

// How full nodes are: as rows for a wall, as cards with what can be done, and as cells of a table.
import { computed, signal } from '@preact/signals';
import { useMemo } from 'preact/hooks';
import { html } from '../html.js';
import { inUnit } from '../format.js';
import { useHistory } from '../history.js';
import { toObject } from '../state.js';
import { summary } from '../stream.js';
import { Bar, Meter, State } from './parts.js';
import { Spark } from './spark.js';

export const AMOUNTS = { cpu: ['cores', 'cores'], memory: ['memory', 'bytes'], disk: ['disk', 'bytes'] };
const known = computed(() => new Map((summary.value?.nodes ?? []).map((node) => [node.name, node])));
export const findNode = (name) => known.value.get(name);

// What guests of each node used in the last hour: `NODE/cpu` → points.
export function useNodeHistory(names) {
  const found = useHistory(names.length ? `{__name__=~"weft_node_(cpu_used_cores|memory_used_bytes)",node=~"${names.join('|')}"}` : '');
  return useMemo(() => new Map((found ?? []).map(({ labels, points }) => [`${labels.node}/${labels.__name__.split('_')[2]}`, points])), [found]);
}

export function Trend({ points, part, name }) {
  if (!points?.length) return null;
  const unit = AMOUNTS[part][1];
  const most = Math.max(...points.map((point) => point[1]));
  return html`<${Spark} points=${points} words=${`${AMOUNTS[part][0]} used on ${name} in the last hour: ${inUnit(points.at(-1)[1], unit)} now, ${inUnit(most, unit)} at most`} />`;
}

export function NodeRows({ nodes }) {
  const trends = useNodeHistory(nodes.map((node) => node.name));
  return html`<div class="scroll whole" tabindex="0" role="region" aria-label="Nodes"><table class="fill">
    <thead><tr><th>NODE</th><th>CORES</th><th>MEMORY</th><th>DISK</th></tr></thead>
    <tbody>${nodes.map((node) => html`<tr key=${node.name}><td title=${node.note}><a class="mono" href=${toObject({ kind: 'node', name: node.name })}>${node.name}</a> <small class="soft">${node.workloads} ${node.workloads === 1 ? 'workload' : 'workloads'}</small> <br /><${State} phase=${node.phase} health=${node.health} /></td>
      ${Object.entries(AMOUNTS).map(([part, [title, unit]]) => html`<td key=${part} data-title=${title}><${Bar} title=${title} of=${node[part]} unit=${unit}><${Trend} points=${trends.get(`${node.name}/${part}`)} part=${part} name=${node.name} /><//></td>`)}</tr>`)}</tbody></table></div>`;
}

export const NodeBars = ({ nodes, action }) => html`<div class="panels">${nodes.map((node) => html`<div class="panel" key=${node.name}>
  <div class="row"><a class="mono" href=${toObject({ kind: 'node', name: node.name })}><b>${node.name}</b></a><${State} phase=${node.phase} health=${node.health} /><span class="grow"></span><span class="soft">${node.workloads} ${node.workloads === 1 ? 'workload' : 'workloads'}</span></div>
  ${node.note && html`<div class="soft">${node.note}</div>`}
  <dl class="facts" style=${{ gridTemplateColumns: 'max-content minmax(0,1fr)', margin: '8px 0' }}>
    ${Object.entries(AMOUNTS).map(([part, [title, unit]]) => html`<dt key=${part}>${title}</dt><dd><${Bar} title=${title} of=${node[part]} unit=${unit} /></dd>`)}
  </dl>${action?.(node)}</div>`)}</div>`;

export const trends = signal(new Map()); // of the nodes' last hour, for their table

// Cells of the table of nodes that no stored object has: what guests use now, and small charts. Each follows the summary itself.
export const NODE_CELLS = { CPU: ['cpu', ''], MEMORY: ['memory', ''], DISK: ['disk', ''], 'CPU USED': ['cpu', 'used'], 'MEMORY USED': ['memory', 'used'], 'DISK USED': ['disk', 'used'] };
export function NodeCell({ name, title, text }) {
  const [part, used] = NODE_CELLS[title];
  const of = findNode(name)?.[part];
  const [words, unit] = AMOUNTS[part];
  if (!of) return text;
  if (used) return html`<span class="cell"><${Trend} points=${trends.value.get(`${name}/${part}`)} part=${part} name=${name} />${of.used == null ? '–' : inUnit(of.used, unit)}</span>`;
  return html`<span class="cell"><${Meter} title=${words} of=${of} unit=${unit} />${text}</span>`;
}

// VMs, containers, functions and jobs in one table, grouped as people wish.
import { html } from '../html.js';
import { kinds, route, setQuery } from '../state.js';
import { KindChips } from '../ui/chips.js';
import { Table } from '../ui/table.js';
import { CreateButton } from '../ui/create.js';

const NAMES = ['vm', 'container', 'function', 'job'];
const GROUPS = { node: 'NODE', project: 'PROJECT', phase: 'PHASE', kind: 'KIND' };

export function Workloads() {
  const { kind = '', group = '' } = route.value.query;
  const known = NAMES.filter((name) => kinds.value.has(name));
  const names = kind && known.includes(kind) ? [kind] : known;
  const heading = GROUPS[group] && ((row, columns) => {
    if (group === 'project') return row.project;
    if (group === 'phase') return row.phase;
    if (group === 'kind') return kinds.value.get(row.kind)?.title;
    return row.cells[columns.findIndex((column) => column.title === GROUPS[group])] || 'on no node';
  });
  return html`
    <div class="row"><h1 class="grow">Workloads</h1>
      <select aria-label="Group by" value=${group} onChange=${(event) => setQuery({ group: event.target.value, sort: GROUPS[event.target.value] ?? '' })}>
        <option value="">not grouped</option>${Object.keys(GROUPS).map((name) => html`<option value=${name}>by ${name}</option>`)}</select>
      <${CreateButton} names=${names} /></div>
    <${KindChips} names=${known} chosen=${kind} all />
    <${Table} key=${names.join()} names=${names} group=${heading} empty="No workloads are here yet." command="weft vm create hello --image tiny" />`;
}

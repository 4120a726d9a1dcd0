// What changes now, and the migrations and conversions of the last while.
import { html } from '../html.js';
import { summary } from '../stream.js';
import { kinds, route } from '../state.js';
import { KindChips } from '../ui/chips.js';
import { Table } from '../ui/table.js';
import { Running } from '../ui/problems.js';

const NAMES = ['migration', 'conversion', 'job'];

export function Operations() {
  const kind = NAMES.includes(route.value.query.kind) ? route.value.query.kind : 'migration';
  return html`<h1>Operations</h1>
    <section class="panel"><h2>Changing now</h2><${Running} operations=${summary.value?.operations} /></section>
    <${KindChips} names=${NAMES.filter((name) => kinds.value.has(name))} chosen=${kind} />
    <${Table} key=${kind} names=${[kind]} empty=${`No ${kind}s yet.`} command=${kind === 'migration' ? 'weft vm migrate NAME' : null} />`;
}

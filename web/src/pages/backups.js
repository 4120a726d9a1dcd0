// Backups: which VMs could be restored, and to when; the repositories; the tables of backups and policies.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { size } from '../format.js';
import { MOST, readAll } from '../read.js';
import { health, kinds, link, placesOf, route } from '../state.js';
import { returns, summary } from '../stream.js';
import { KindChips } from '../ui/chips.js';
import { CreateButton } from '../ui/create.js';
import { Age, Name, State } from '../ui/parts.js';
import { Table } from '../ui/table.js';

const NAMES = ['backup', 'backuppolicy', 'backuprepository'];
const EMPTY = {
  backup: ['No backups yet.', 'weft backup create vm/NAME --to REPOSITORY'],
  backuppolicy: ['No policy makes backups yet.', 'weft backuppolicy create nightly --of vm/NAME --to REPOSITORY --schedule daily'],
  backuprepository: ['There is no place for backups yet.', 'weft backuprepository create safe --url dir:///srv/backups'],
};
const SHOWN = 12; // VMs in it

export function Backups() {
  const known = NAMES.filter((name) => kinds.value.has(name));
  const name = known.includes(route.value.query.kind) ? route.value.query.kind : 'backup';
  return html`<div class="row"><h1 class="grow">Backups</h1><${CreateButton} names=${[name]} /></div>
    <${Overview} />
    <${KindChips} names=${known} chosen=${name} />
    <${Table} key=${name} names=${[name]} empty=${EMPTY[name][0]} command=${EMPTY[name][1]} />`;
}

function Overview() {
  const [facts, setFacts] = useState(null);
  const changes = JSON.stringify(summary.value?.phases ?? {});
  const places = placesOf('backup:list').join();
  useEffect(() => {
    let isOver = false;
    Promise.all(['vm', 'backup', 'backuppolicy', 'backuprepository'].map((each) => readAll(each))).then(([vms, backups, policies, repositories]) => {
      if (!isOver) setFacts({ vms, backups, policies, repositories });
    });
    return () => { isOver = true; };
  }, [places, changes, returns.value]);
  if (!facts) return html`<p class="soft">Reading backups…</p>`;
  return html`<${Protection} ...${facts} /><${Repositories} found=${facts.repositories.items} />`;
}

// Those that can't be restored come first, then those whose newest backup is oldest.
function Protection({ vms, backups, policies }) {
  if (!vms.items.length) return null;
  if (vms.isCut || backups.isCut) return html`<section class="panel"><h2>What could be restored</h2><p class="soft">More than ${MOST} VMs or backups: choose a project to see which VMs have no backup.</p></section>`;
  const newest = new Map();
  for (const backup of backups.items) {
    const key = `${backup.project}/${backup.spec.of}`;
    const at = backup.status?.taken_at ?? 0;
    if (backup.status?.phase === 'Ready' && !['damaged', 'failed'].includes(backup.status.state) && at >= (newest.get(key)?.status.taken_at ?? 0)) newest.set(key, backup);
  }
  const rows = vms.items.map((vm) => {
    const policy = policies.items.find((each) => each.project === vm.project && !each.spec.paused && each.spec.of.includes(`vm/${vm.name}`));
    return { vm, backup: newest.get(`${vm.project}/vm/${vm.name}`), policy };
  }).sort((a, b) => (a.backup?.status.taken_at ?? 0) - (b.backup?.status.taken_at ?? 0) || a.vm.name.localeCompare(b.vm.name));
  const without = rows.filter((row) => !row.backup).length;
  return html`<section class="panel"><h2>What could be restored</h2>
    <p class=${`state ${without ? 'degraded' : 'running'}`}>${without ? `${without} of ${rows.length} VMs have no backup.` : `Each of ${rows.length} VMs has a backup.`}</p>
    <div class="scroll whole" tabindex="0" role="region" aria-label="VMs and their newest backups"><table>
      <thead><tr><th>VM</th><th>NEWEST BACKUP</th><th>AGE</th><th>STATE</th><th>POLICY</th></tr></thead>
      <tbody>${rows.slice(0, SHOWN).map(({ vm, backup, policy }) => html`<tr key=${vm.uid}><td><${Name} row=${vm} /></td>
        <td>${backup ? html`<${Name} row=${backup} />` : 'none'}</td><td>${backup && html`<${Age} since=${backup.status.taken_at} />`}</td><td>${backup?.status.state ?? ''}</td>
        <td>${policy ? html`<${Name} row=${policy} />` : 'none'}</td></tr>`)}</tbody></table></div>
    ${rows.length > SHOWN && html`<p class="soft">and ${rows.length - SHOWN} more, whose backups are newer: <a href=${link(['backups'], { sort: 'OF' })}>all backups by VM</a></p>`}</section>`;
}

function Repositories({ found }) {
  if (!found.length) return null;
  return html`<section><h2>Repositories</h2><div class="panels">${found.slice(0, 12).map((each) => {
    const { phase = 'Pending', bytes = 0, free = -1, backups = 0, message = '' } = each.status ?? {};
    return html`<div class="panel" key=${each.uid}><div class="row"><${Name} row=${each} /><${State} phase=${phase} health=${health.value[phase]} /><span class="grow"></span><span class="soft">${backups} ${backups === 1 ? 'backup' : 'backups'}</span></div>
      <div class="soft mono">${each.spec.url}</div>
      <div>${size(bytes)} taken up${free >= 0 ? `, ${size(free)} free` : ''}</div>
      ${message && html`<div>${message}</div>`}</div>`;
  })}</div></section>`;
}

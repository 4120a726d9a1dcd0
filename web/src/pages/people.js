// Projects, their quotas and what they used; users, roles and tokens.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, query } from '../api.js';
import { many, number } from '../format.js';
import { kinds, project, route } from '../state.js';
import { returns } from '../stream.js';
import { KindChips } from '../ui/chips.js';
import { CreateButton } from '../ui/create.js';
import { Command, ProblemBox } from '../ui/parts.js';
import { Table } from '../ui/table.js';

const NAMES = ['project', 'quota', 'user', 'group', 'role', 'rolebinding', 'token'];

export function People() {
  const known = NAMES.filter((name) => kinds.value.has(name));
  const name = known.includes(route.value.query.kind) ? route.value.query.kind : 'project';
  return html`<div class="row"><h1 class="grow">People and usage</h1><${CreateButton} names=${[name]} /></div>
    <${Usage} />
    <${KindChips} names=${known} chosen=${name} />
    <${Table} key=${name} names=${[name]} empty=${`No ${many(kinds.value.get(name))} yet.`} command=${`weft ${name} create NAME`} />`;
}

function Usage() {
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    let isOver = false;
    const since = Math.floor(Date.now() / 1000) - 30 * 86400;
    const path = project.value ? `/v1/projects/${encodeURIComponent(project.value)}/accounting` : '/v1/accounting';
    get(`${path}?${query({ since })}`).then((found) => { if (!isOver) { setAnswer(found); setError(null); } }, (problem) => { if (!isOver) { setAnswer(null); setError(problem); } });
    return () => { isOver = true; };
  }, [project.value, returns.value]);
  if (error) return error.status === 403 ? html`<p class="soft">${error.message}</p>` : html`<${ProblemBox} error=${error} />`;
  return html`<section class="panel"><h2>Requested and used in the last 30 days</h2>
    ${answer && !answer.items.length && html`<p class="soft">Nothing is counted yet: hours are counted when they are over.</p>`}
    ${answer?.items.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Usage"><table><thead><tr><th>PROJECT</th><th>USER</th><th class="number">CORE HOURS</th><th class="number">USED</th><th class="number">GiB HOURS</th><th class="number">USED</th></tr></thead>
      <tbody>${answer.items.map((item) => html`<tr key=${`${item.project}/${item.user}`}><td>${item.project}</td><td>${item.user}</td><td class="number">${number(item.requested.core_hours, 1)}</td><td class="number">${number(item.used.core_hours, 1)}</td>
        <td class="number">${number(item.requested.memory_gib_hours, 1)}</td><td class="number">${number(item.used.memory_gib_hours, 1)}</td></tr>`)}</tbody></table></div>`}
    <${Command} words=${project.value ? `weft usage -p ${project.value}` : 'weft usage --all-projects'} /></section>`;
}

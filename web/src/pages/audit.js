// The audit log: who did what, newest first, a page at a time.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, query } from '../api.js';
import { project, route, setQuery, toObject } from '../state.js';
import { returns } from '../stream.js';
import { Command, ProblemBox } from '../ui/parts.js';

const FIELDS = ['actor', 'kind', 'outcome'];

export function Audit() {
  const [items, setItems] = useState(null);
  const [away, setAway] = useState([]);
  const [error, setError] = useState(null);
  const words = route.value.query;
  const given = Object.fromEntries(FIELDS.map((name) => [name, words[name] ?? '']));
  useEffect(() => {
    let isOver = false;
    get(`/v1/audit?${query({ ...given, project: project.value, limit: 200 })}`).then((page) => { if (!isOver) { setItems(page.items); setAway(page.away ?? []); setError(null); } }, (problem) => { if (!isOver) { setError(problem); setItems([]); } });
    return () => { isOver = true; };
  }, [project.value, JSON.stringify(given), returns.value]);
  const flags = FIELDS.filter((name) => given[name]).map((name) => ` --${name} ${given[name]}`).join('');
  return html`<h1>Audit</h1>
    <form class="row" role="search" onSubmit=${(event) => { event.preventDefault(); setQuery(Object.fromEntries(new FormData(event.target))); }}>
      ${FIELDS.map((name) => html`<label key=${name}>${name} <input name=${name} value=${given[name]} size="14" /></label>`)}<button>Look for these</button></form>
    <${ProblemBox} error=${error} />
    ${away.length > 0 && html`<p class="soft">Records are missing of servers that are away: ${away.join(', ')}.</p>`}
    ${items?.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Audit log"><table><thead><tr><th>TIME</th><th>ACTOR</th><th>OUTCOME</th><th>DID</th><th>OBJECTS</th><th>PROJECT</th><th>ADDRESS</th></tr></thead>
      <tbody>${[...items].reverse().map((each) => html`<tr key=${`${each.chain}-${each.sequence}`}><td>${each.at.slice(0, 19).replace('T', ' ')}</td><td>${each.actor?.name}</td>
        <td><span class=${`state ${each.status && each.status < 400 ? 'running' : each.status >= 500 ? 'degraded' : each.status ? 'failed' : 'waiting'}`}>${each.outcome}</span></td><td>${each.verb}${each.count > 1 ? ` × ${each.count}` : ''}</td>
        <td>${(each.objects ?? []).slice(0, 3).map((object) => html`<a key=${object.uid} class="mono" href=${toObject({ ...object, project: each.project })}>${object.kind}/${object.name} </a>`)}</td><td>${each.project}</td><td class="mono">${each.address}</td></tr>`)}</tbody></table></div>`}
    ${items && !items.length && !error && html`<p class="soft">Nothing matches.</p>`}
    <${Command} words=${`weft audit list${flags}`} />`;
}

// Traces: what was slow lately; and one of them as a waterfall.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, query } from '../api.js';
import { duration } from '../format.js';
import { kinds, link, now, project, route, setQuery, toObject } from '../state.js';
import { returns } from '../stream.js';
import { Age, Command, Empty, ProblemBox } from '../ui/parts.js';
import { Waterfall } from '../ui/waterfall.js';

const MOST = 500; // traces
const MOST_TEXT = 200;
// Seconds, as people read them, and as the command takes them.
const SLOW = [['', 'any time', ''], ['0.01', '10 ms', '10ms'], ['0.1', '100 ms', '100ms'], ['1', '1 s', '1s'], ['10', '10 s', '10s'], ['60', '1 min', '1m']];
const SINCE = [['600', '10 min', '10m'], ['3600', '1 h', '1h'], ['86400', '1 d', '1d'], ['604800', '7 d', '7d']];
const HOUR = '3600';

export function Traces() {
  const [, trace] = route.value.path;
  if (!trace) return html`<${List} />`;
  return html`<h1>Trace <span class="mono">${trace.slice(0, 40)}</span></h1><p><a href=${link(['traces'])}>All traces</a></p><${Waterfall} key=${trace} trace=${trace} />`;
}

const flagOf = (all, wanted) => all.find(([value]) => value === wanted)[2];
const chosen = (name, allowed, otherwise) => (allowed.some(([value]) => value === route.value.query[name]) ? route.value.query[name] : otherwise);

function List() {
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  const [asked, setAsked] = useState(0);
  const slow = chosen('slow', SLOW, '');
  const since = chosen('since', SINCE, HOUR);
  const isNewestFirst = route.value.query.order === 'newest';
  const about = route.value.query.object ?? '';
  useEffect(() => {
    let isOver = false;
    const words = query({ project: project.value, since: Date.now() / 1000 - Number(since), slow, object: about, limit: MOST });
    get(`/v1/traces?${words}`).then((answer) => { if (!isOver) { setFound(answer.items); setError(null); } }, (problem) => { if (!isOver) setError(problem); });
    return () => { isOver = true; };
  }, [project.value, slow, since, about, asked, returns.value]);
  const rows = isNewestFirst ? found ?? [] : [...(found ?? [])].sort((a, b) => b.seconds - a.seconds);
  return html`<h1>Traces</h1>
    <div class="row"><${Choice} name="slow" words="Took at least" of=${SLOW} value=${slow} /><${Choice} name="since" words="In the last" of=${SINCE} value=${since} />
      <${Choice} name="order" words="Order" of=${[['', 'slowest first'], ['newest', 'newest first']]} value=${isNewestFirst ? 'newest' : ''} />
      ${about && html`<button type="button" class="chip" aria-pressed="true" onClick=${() => setQuery({ object: '' })}>only ${about.slice(0, MOST_TEXT)} ✕</button>`}
      <button type="button" onClick=${() => setAsked(asked + 1)}>Read again</button></div>
    <${ProblemBox} error=${error} />
    ${!found && !error && html`<p class="soft">Reading traces…</p>`}
    ${found && !found.length && !error && html`<${Empty} words="No trace is like that: choose a longer time, or a shorter minimum." />`}
    ${rows.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Traces"><table>
      <thead><tr><th>WHAT</th><th>OBJECT</th><th class="number">TIME</th><th class="number">SPANS</th><th>AGE</th><th>STATE</th></tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.trace}><td><a class="mono" href=${link(['traces', row.trace])}><bdi>${row.name.slice(0, MOST_TEXT) || row.trace}</bdi></a></td>
        <td><${About} about=${row.about} /></td><td class="number">${duration(row.seconds * 1e9)}</td><td class="number">${row.spans}</td><td><${Age} since=${Math.min(row.began_at, now.value)} /></td>
        <td>${row.error ? html`<span class="state failed"><bdi>${row.error.slice(0, MOST_TEXT)}</bdi></span>` : html`<span class=${`state ${row.over ? 'ended' : 'changing'}`}>${row.over ? 'over' : 'not over'}</span>`}</td></tr>`)}</tbody></table></div>`}
    ${rows.length >= MOST && html`<p class="soft">Only the newest ${MOST} are shown: choose a shorter time, or a longer minimum.</p>`}
    ${!about && html`<${Command} words=${`weft trace list${slow ? ` --slow ${flagOf(SLOW, slow)}` : ''}${since === HOUR ? '' : ` --since ${flagOf(SINCE, since)}`}${project.value ? ` -p ${project.value}` : ''}`} />`}`;
}

const Choice = ({ name, words, of, value }) => html`<label>${words} <select value=${value} onChange=${(event) => setQuery({ [name]: event.target.value })}>
  ${of.map(([each, text]) => html`<option key=${each} value=${each}>${text}</option>`)}</select></label>`;

// KIND/PROJECT/NAME, as a link where there is such a page.
function About({ about }) {
  const [kind, where, name] = about.split('/');
  if (!kinds.value.has(kind) || !name || name === '-') return about === 'request/-/-' ? '–' : html`<bdi>${about.slice(0, MOST_TEXT)}</bdi>`;
  return html`<a class="mono" href=${toObject({ kind, project: where, name })}>${kind}/${name}</a> <span class="soft">${where === '-' ? '' : where}</span>`;
}

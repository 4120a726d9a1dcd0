// The spec, as a form of what can be changed and as the whole object; a change is tried by the server before it is made.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { pathOf, request } from '../api.js';
import { yaml } from '../format.js';
import { may, notice } from '../state.js';
import { Command, ProblemBox } from '../ui/parts.js';

export function Spec({ row, kind, object }) {
  const [text, setText] = useState('');
  const [base, setBase] = useState(null);
  const [plan, setPlan] = useState(null);
  const [error, setError] = useState(null);
  const [view, setView] = useState('edit');
  const load = () => { setText(JSON.stringify(object.spec, null, 2)); setBase(object); setPlan(null); setError(null); };
  useEffect(() => { if (object && !base) load(); }, [object?.revision]);
  if (!object) return null;
  const lacks = kind.writer !== 'people' ? 'only weft writes these objects' : kind.update && !may(kind.update, row.project) ? `you lack the permission ${kind.update}` : '';
  const isStale = base && base.generation !== object.generation;
  const send = async (dry) => {
    setError(null);
    let spec;
    try { spec = JSON.parse(text); } catch (problem) { setError({ message: `the spec must be JSON: ${problem.message}` }); return; }
    const patch = difference(base.spec, spec);
    if (!Object.keys(patch).length) { setError({ message: 'nothing was changed' }); return; }
    try {
      const answer = await request('PATCH', `${pathOf(kind, row.project, row.name)}${dry ? '?dry_run=1' : ''}`, { spec: patch, generation: base.generation }, { 'Content-Type': 'application/merge-patch+json' });
      if (dry) { setPlan({ patch, answer }); return; }
      setBase(answer);
      setText(JSON.stringify(answer.spec, null, 2));
      setPlan(null);
      notice(`${kind.title} ${row.name} changed`);
    } catch (problem) { setError(problem); }
  };
  const given = plan?.patch ?? (() => { try { return difference(base?.spec ?? {}, JSON.parse(text)); } catch { return {}; } })();
  const words = Object.entries(given).filter(([, value]) => value === null || typeof value !== 'object').map(([key, value]) => `--${key.replaceAll('_', '-')} ${value}`).join(' ');
  return html`<div class="row" role="group" aria-label="Form of the object">
      ${['edit', 'yaml'].map((each) => html`<button key=${each} type="button" class="chip" aria-pressed=${view === each} onClick=${() => setView(each)}>${each === 'edit' ? 'Edit the spec' : 'Whole object as YAML'}</button>`)}</div>
    ${view === 'yaml' ? html`<pre class="log" tabindex="0" aria-label="The object as YAML">${yaml(object).trim()}</pre>` : html`
      ${lacks && html`<p class="soft">${lacks}</p>`}
      ${isStale && html`<div class="problem" role="alert">It was changed meanwhile. <button type="button" onClick=${load}>Load the newest state</button></div>`}
      <textarea aria-label="Spec as JSON" spellcheck="false" value=${text} readonly=${Boolean(lacks)} onInput=${(event) => { setText(event.target.value); setPlan(null); }}></textarea>
      <${ProblemBox} error=${error} />
      ${plan && html`<div class="panel"><h2>The server would accept this change</h2><pre>${yaml(plan.patch).trim()}</pre></div>`}
      <${Command} words=${words ? `weft ${kind.name} set ${row.name} ${words}` : `weft edit ${kind.name}/${row.name}`} />
      <div class="row"><button type="button" disabled=${Boolean(lacks)} onClick=${() => send(true)}>Try without changing</button>
        <button type="button" class="main-action" disabled=${Boolean(lacks) || isStale} onClick=${() => send(false)}>Change ${kind.title}</button>
        <button type="button" onClick=${load}>Start again</button></div>`}`;
}

// The JSON merge patch (RFC 7396) that leads from one object to the other.
function difference(before, after) {
  const patch = {};
  for (const key of new Set([...Object.keys(before), ...Object.keys(after)])) {
    if (!(key in after)) patch[key] = null;
    else if (JSON.stringify(before[key]) === JSON.stringify(after[key])) continue;
    else if (isObject(before[key]) && isObject(after[key])) patch[key] = difference(before[key], after[key]);
    else patch[key] = after[key];
  }
  return patch;
}
const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

// A form for a new object, from the fields of its kind: those that people set most first, all others behind a heading; what the
// server would make of it is shown before it is made.
import { useState } from 'preact/hooks';
import { html } from '../html.js';
import { pathOf, request } from '../api.js';
import { command, yaml } from '../format.js';
import { go, kinds, may, notice, project } from '../state.js';
import { Field, flagsOf, valuesOf } from './actions.js';
import { close, open } from './dialog.js';
import { Command, ProblemBox } from './parts.js';

const FIRST = new Set(['spec.image', 'spec.cpu', 'spec.memory', 'spec.disk', 'spec.networks', 'spec.network', 'spec.command', 'spec.argv', 'spec.env', 'spec.node', 'spec.policy', 'spec.size', 'spec.cidr', 'spec.source', 'spec.task.image', 'spec.task.command', 'spec.runtime', 'spec.handler', 'spec.members', 'spec.role']);

export function CreateButton({ names }) {
  const possible = names.map((name) => kinds.value.get(name)).filter((kind) => kind?.create && kind.writer === 'people');
  if (!possible.length) return null;
  const start = (kind) => open(html`<${CreateDialog} kind=${kind} />`);
  if (possible.length === 1) {
    const [kind] = possible;
    const lacks = !may(kind.create, project.value || 'default') && kind.create;
    return html`<button type="button" class="main-action" disabled=${Boolean(lacks)} title=${lacks ? `you lack the permission ${lacks}` : ''} onClick=${() => start(kind)}>Create ${kind.title}</button>`;
  }
  return html`<select aria-label="Create" onChange=${(event) => { const kind = kinds.value.get(event.target.value); event.target.value = ''; if (kind) start(kind); }}>
    <option value="">Create…</option>${possible.map((kind) => html`<option value=${kind.name}>${kind.title}</option>`)}</select>`;
}

function CreateDialog({ kind }) {
  const [name, setName] = useState('');
  const [where, setWhere] = useState(project.value || 'default');
  const [given, setGiven] = useState({});
  const [error, setError] = useState(null);
  const [preview, setPreview] = useState(null);
  const [busy, setBusy] = useState(false);
  const fields = (kind.spec ?? []).filter((field) => !field.path.slice(5).match(/[.[]/) || field.required); // parts of a struct: as JSON
  const first = fields.filter((field) => FIRST.has(field.path) || field.required);
  const rest = fields.filter((field) => !first.includes(field));
  const body = { kind: kind.name, name, spec: valuesOf(fields, given) };
  const send = async (dry) => {
    setBusy(true);
    setError(null);
    try {
      const made = await request('POST', `${pathOf(kind, where)}${dry ? '?dry_run=1' : ''}`, body);
      if (dry) { setPreview(made); return; }
      close();
      notice(`${kind.title} ${name} created`);
      go(['o', kind.name, kind.scope === 'project' ? where : '-', name]);
    } catch (problem) { setError(problem); } finally { setBusy(false); }
  };
  const row = (field) => html`<${Field} key=${field.path} field=${field} value=${given[field.path]} wrong=${error?.field === field.path}
    onInput=${(value) => { setPreview(null); setGiven({ ...given, [field.path]: value }); }} />`;
  return html`<form onSubmit=${(event) => { event.preventDefault(); send(false); }}>
    <h2 id="dialog-title">Create ${kind.title}</h2>
    <label class=${`field ${error?.field === 'name' ? 'wrong' : ''}`}>name<input required autocomplete="off" maxlength="63" value=${name} onInput=${(event) => setName(event.target.value)} /></label>
    ${kind.scope === 'project' && html`<label class="field">project<input required autocomplete="off" value=${where} onInput=${(event) => setWhere(event.target.value)} /></label>`}
    ${first.map(row)}
    ${rest.length > 0 && html`<details><summary>${rest.length} more fields</summary>${rest.map(row)}</details>`}
    <${ProblemBox} error=${error} />
    <${Command} words=${command(kind, 'create', name || 'NAME', { project: where, flags: flagsOf(fields, given) })} />
    ${preview && html`<details open><summary>What the server would make</summary><pre>${yaml(preview.spec).trim()}</pre></details>`}
    <div class="row"><button class="main-action" disabled=${busy || !name}>Create ${kind.title}</button>
      <button type="button" disabled=${busy || !name} onClick=${() => send(true)}>Try without creating</button>
      <button type="button" onClick=${close}>Close</button></div>
  </form>`;
}

// A form for a new object, in the order of the task: what people set most first, with lists to choose from, all else behind a
// heading. What is wrong stands at its field.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, pathOf, request } from '../api.js';
import { describeKinds, useDescribed } from '../described.js';
import { command, yaml } from '../format.js';
import { go, kinds, may, notice, project } from '../state.js';
import { close, open } from './dialog.js';
import { Field, flagsOf, isAbout, valuesOf } from './field.js';
import { Command, ProblemBox } from './parts.js';

// What people set most, in the order in which they think of it; kinds that aren't here have their required fields first.
const TASKS = {
  vm: ['image', 'cpu', 'memory', 'disk', 'networks', 'ssh_keys', 'node', 'volumes'],
  container: ['image', 'command', 'cpu', 'memory', 'networks', 'publish', 'env', 'node'],
  deployment: ['workload', 'template', 'replicas', 'labels'], volume: ['size', 'pool'], network: ['cidr', 'nat'],
  service: ['selector', 'ports', 'publish', 'protocol', 'network'],
};
const OTHERS = ['image', 'source', 'command', 'argv', 'runtime', 'handler', 'cpu', 'memory', 'disk', 'size', 'networks', 'network', 'env', 'policy', 'cidr', 'members', 'role', 'node'];
const SIZE = ['cpu', 'memory', 'disk']; // on one line
// Fields that name objects, by the kind of these. A container's image is one of a registry, too, so it is typed.
const NAMED = { image: 'image', iso: 'image', networks: 'network', network: 'network', node: 'node', volumes: 'volume', pool: 'pool', security_groups: 'securitygroup', reservation: 'reservation', receivers: 'receiver' };
const MOST_CHOICES = 200;
const MOST_TRIES = 8; // wrong fields that are found at once

export function CreateButton({ names }) {
  const possible = names.map((name) => kinds.value.get(name)).filter((kind) => kind?.create && kind.writer === 'people');
  if (!possible.length) return null;
  const start = (kind) => { describeKinds().catch(() => {}); open(html`<${CreateDialog} name=${kind.name} />`); };
  if (possible.length === 1) {
    const [kind] = possible;
    const lacks = !may(kind.create, project.value || 'default') && kind.create;
    return html`<button type="button" class="main-action" disabled=${Boolean(lacks)} title=${lacks ? `you lack the permission ${lacks}` : ''} onClick=${() => start(kind)}>Create ${kind.title}</button>`;
  }
  return html`<select aria-label="Create" onChange=${(event) => { const kind = kinds.value.get(event.target.value); event.target.value = ''; if (kind) start(kind); }}>
    <option value="">Create…</option>${possible.map((kind) => html`<option value=${kind.name}>${kind.title}</option>`)}</select>`;
}

function CreateDialog({ name }) {
  const kind = useDescribed(name);
  return kind ? html`<${Form} kind=${kind} />` : html`<div class="body"><h2 id="dialog-title">Create ${kinds.value.get(name).title}</h2><p class="soft">Loading…</p></div>`;
}

// The names of the objects that these fields may name, by field. `onOnly(path, name)`: there is no choice.
function useChoices(kind, fields, where, onOnly) {
  const [found, setFound] = useState({});
  useEffect(() => {
    let isOver = false;
    for (const field of fields) {
      const target = kinds.value.get(NAMED[field.path.slice(5)]);
      if (!target || (kind.name === 'container' && field.path === 'spec.image')) continue;
      get(`${pathOf(target, where)}?limit=${MOST_CHOICES}`).then((page) => {
        const choices = page.items.map((item) => ({ name: item.name, words: target.name === 'node' && item.status?.phase !== 'Ready' ? `${item.name} (${item.status?.phase})` : item.name }));
        if (isOver || page.continue) return;
        setFound((before) => ({ ...before, [field.path]: choices }));
        if (field.required && choices.length === 1) onOnly(field.path, choices[0].name);
      }, () => {}); // who may not list them types the name
    }
    return () => { isOver = true; };
  }, [kind, where]);
  return found;
}

function Form({ kind }) {
  const [name, setName] = useState('');
  const [where, setWhere] = useState(project.value || 'default');
  const [given, setGiven] = useState({});
  const [wrong, setWrong] = useState([]); // [{path, error}]; path "": about no field
  const [preview, setPreview] = useState(null);
  const [busy, setBusy] = useState(false);
  const isNeeded = (path) => { const parent = path.slice(0, path.lastIndexOf('.')); return parent === 'spec' || kind.spec.some((each) => each.path === parent && each.required && isNeeded(parent)); };
  const fields = kind.spec.filter((field) => !/[.[]/.test(field.path.slice(5)) || (field.required && isNeeded(field.path))); // other parts of a struct: as JSON
  useEffect(() => { document.getElementById('new-name').focus(); }, []);
  const order = (TASKS[kind.name] ?? OTHERS).map((each) => `spec.${each}`);
  const rank = (field) => { const place = order.indexOf(field.path); return place < 0 ? (field.required ? -1 : 99) : place; };
  const first = fields.filter((field) => rank(field) < 99).sort((a, b) => rank(a) - rank(b));
  const rest = fields.filter((field) => rank(field) === 99);
  const choices = useChoices(kind, fields, where, (path, only) => setGiven((before) => ({ [path]: only, ...before })));
  const post = (values, as, dry) => request('POST', `${pathOf(kind, where)}${dry ? '?dry_run=1' : ''}`, { kind: kind.name, name: as, spec: valuesOf(fields, values) });
  const send = async (dry) => {
    setBusy(true);
    setWrong([]);
    try {
      const made = await post(given, name, dry);
      if (dry) { setPreview(made); return; }
      close();
      notice(`${kind.title} ${name} created`);
      go(['o', kind.name, kind.scope === 'project' ? where : '-', name]);
    } catch (problem) {
      const found = await findWrong(problem);
      setWrong(found);
      setTimeout(() => document.getElementById(found[0].path === 'name' ? 'new-name' : `field-${found[0].path.replaceAll('.', '-')}`)?.focus());
    } finally { setBusy(false); }
  };
  // A refusal names one field: what else is wrong is found by trying without that field.
  const findWrong = async (refusal) => {
    const found = [];
    const left = { ...given };
    let as = name;
    for (let error = refusal; error && found.length < MOST_TRIES;) {
      const path = isAbout(error, 'name') ? 'name' : fields.find((field) => isAbout(error, field.path))?.path ?? '';
      if (found.some((each) => each.path === path)) break;
      found.push({ path, error });
      if (!path) break;
      if (path === 'name') as = `new-${Math.random().toString(36).slice(2, 8)}`;
      else left[path] = fields.find((field) => field.path === path).required ? choices[path]?.[0]?.name : undefined;
      error = await post(left, as, true).then(() => null, (next) => next);
    }
    return found;
  };
  const saying = (path) => { // it stands at the field, so it needn't name it
    const error = wrong.find((each) => each.path === path)?.error;
    const help = fields.find((field) => field.path === path)?.help;
    return error ? [error.message.replace(/^spec\.[\w.[\]]+:? /, ''), error.hint === help ? '' : error.hint].filter(Boolean).join('; ') : '';
  };
  const row = (field) => html`<${Field} key=${field.path} field=${field} value=${given[field.path]} wrong=${saying(field.path)} choices=${choices[field.path]}
    onInput=${(value) => { setPreview(null); setGiven({ ...given, [field.path]: value }); }} />`;
  const sizes = first.filter((field) => SIZE.includes(field.path.slice(5)));
  const lines = first.filter((field) => sizes.length < 2 || !sizes.includes(field) || field === sizes[0]);
  return html`<form novalidate onSubmit=${(event) => { event.preventDefault(); send(false); }}>
    <h2 id="dialog-title">Create ${kind.title}</h2>
    <label class=${`field ${saying('name') ? 'wrong' : ''}`} for="new-name"><span>name</span><input id="new-name" required autocomplete="off" maxlength="63" value=${name} aria-invalid=${saying('name') ? 'true' : undefined}
      onInput=${(event) => setName(event.target.value)} />${saying('name') && html`<small class="bad">${saying('name')}</small>`}</label>
    ${kind.scope === 'project' && html`<${Where} value=${where} onInput=${setWhere} />`}
    ${lines.map((field) => (sizes.length > 1 && field === sizes[0] ? html`<div class="line" key="size">${sizes.map(row)}</div>` : row(field)))}
    ${rest.length > 0 && html`<details open=${rest.some((field) => saying(field.path)) || undefined}><summary>${rest.length} more fields</summary>${rest.map(row)}</details>`}
    ${wrong.length > 1 && html`<p class="state failed" role="alert">${wrong.length} fields are wrong: ${wrong.map((each) => each.path || each.error.message).join(', ')}</p>`}
    ${wrong.length === 1 && html`<${ProblemBox} error=${wrong[0].error} />`}
    <${Command} words=${command(kind, 'create', name || 'NAME', { project: where, flags: flagsOf(fields, given) })} />
    ${preview && html`<details open><summary>What the server would make</summary><pre>${yaml(preview.spec).trim()}</pre></details>`}
    <div class="row"><button class="main-action" disabled=${busy || !name}>Create ${kind.title}</button>
      <button type="button" disabled=${busy || !name} onClick=${() => send(true)}>Try without creating</button>
      <button type="button" onClick=${close}>Close</button></div>
  </form>`;
}

function Where({ value, onInput }) {
  const [names, setNames] = useState([value]);
  useEffect(() => { get('/v1/projects?limit=500').then((page) => setNames([...new Set([value, ...page.items.map((item) => item.name)])]), () => {}); }, []);
  return html`<label class="field" for="new-project"><span>project</span><select id="new-project" value=${value} onChange=${(event) => onInput(event.target.value)}>
    ${names.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select></label>`;
}

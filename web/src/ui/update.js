// A new version of a deployment: the fields of its template that change most. All others: weft deployment update.
import { useState } from 'preact/hooks';
import { html } from '../html.js';
import { pathOf, post } from '../api.js';
import { command, size } from '../format.js';
import { kinds, notice } from '../state.js';
import { object } from '../stream.js';
import { close } from './dialog.js';
import { Field, isAbout } from './field.js';
import { Command, ProblemBox } from './parts.js';

const FIELDS = { image: 'text', cpu: 'cores', memory: 'size' };

export function UpdateDialog({ row }) {
  const [given, setGiven] = useState({});
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const kind = kinds.value.get(row.kind);
  const now = object.value?.spec?.template ?? {};
  const changes = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== ''));
  const send = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    const template = { ...changes, ...(changes.cpu && !Number.isNaN(Number(changes.cpu)) ? { cpu: Number(changes.cpu) } : {}) };
    try {
      await post(pathOf(kind, row.project, row.name, 'update'), { template });
      close();
      notice(`${row.name} is rolled out`);
    } catch (problem) { setError(problem); }
    setBusy(false);
  };
  return html`<form onSubmit=${send}><h2 id="dialog-title">Update ${kind.title} ${row.name}</h2>
    <p class="soft">The instances get another version by the deployment’s strategy; without changes they are rolled out again.</p>
    ${Object.entries(FIELDS).map(([name, type]) => html`<${Field} key=${name} field=${{ path: name, type, default: type === 'size' ? undefined : now[name], help: `now ${type === 'size' ? size(now[name]) : now[name] ?? '–'}` }}
      value=${given[name]} wrong=${isAbout(error, `spec.template.${name}`) ? error.message : ''} onInput=${(value) => setGiven({ ...given, [name]: value })} />`)}
    <${ProblemBox} error=${error} />
    <${Command} words=${command(kind, 'update', row.name, { project: row.project, flags: changes })} />
    <div class="row"><button class="main-action" disabled=${busy}>Update ${row.name}</button><button type="button" onClick=${close}>Close</button></div></form>`;
}

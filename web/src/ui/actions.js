// Verbs on objects, derived from the kinds: what may be done, with which fields, and the command that does the same.
import { useState } from 'preact/hooks';
import { html } from '../html.js';
import { useDescribed } from '../described.js';
import { command } from '../format.js';
import { pathOf, post, request } from '../api.js';
import { kinds, may, notice, noticeOf } from '../state.js';
import { close, open } from './dialog.js';
import { Field, flagsOf, isAbout, valuesOf } from './field.js';
import { Command, ProblemBox } from './parts.js';
import { lazy } from './lazy.js';

const UpdateDialog = lazy(() => import('./update.js').then((part) => part.UpdateDialog));
const DANGEROUS = new Set(['delete', 'drain', 'maintenance', 'undo', 'cancel', 'cancel-lease', 'stop']);
const title = (verb) => verb.charAt(0).toUpperCase() + verb.slice(1).replaceAll('-', ' ');

// Where a kind's own order, or the phases in which a verb makes sense, don't follow from the server.
const ORDER = {
  deployment: ['scale', 'pause', 'resume', 'undo', 'update'],
  vm: ['stop', 'start', 'restart', 'snapshot', 'migrate', 'resume', 'suspend'],
  container: ['stop', 'start', 'restart', 'migrate'],
  node: ['drain', 'uncordon', 'cordon', 'maintenance'],
};
const PHASES = { deployment: { pause: ['Progressing'], resume: ['Paused', 'Undecided'] } };
const place = (kind, name) => { const found = ORDER[kind]?.indexOf(name) ?? -1; return found < 0 ? 99 : found; };
const phasesOf = (row, name) => PHASES[row.kind]?.[name] ?? kinds.value.get(row.kind)?.actions?.find((each) => each.name === name)?.phases ?? [];

// The verbs that all of these rows' kinds have, with the permission that each needs.
export function actionsOf(rows) {
  const of = [...new Set(rows.map((row) => row.kind))].map((name) => kinds.value.get(name)).filter(Boolean);
  if (!of.length) return [];
  const all = of.map((kind) => [...(kind.actions ?? []), ...(kind.delete ? [{ name: 'delete', summary: `Delete ${kind.title}`, needs: kind.delete, input: [] }] : [])]);
  return all[0].filter((action) => all.every((others) => others.some((other) => other.name === action.name))).sort((a, b) => place(of[0].name, a.name) - place(of[0].name, b.name));
}

// Why none of these rows can have it now; '' if one can.
const untimely = (action, rows) => {
  const late = rows.filter((row) => row.phase && phasesOf(row, action.name).length && !phasesOf(row, action.name).includes(row.phase));
  return late.length === rows.length ? `not while ${rows.length === 1 ? 'it is' : 'they are'} ${[...new Set(late.map((row) => row.phase))].join(', ')}` : '';
};

export const missing = (action, rows) => rows.map((row) => {
  const needs = kinds.value.get(row.kind)?.actions?.find((each) => each.name === action.name)?.needs ?? action.needs;
  return needs && !may(needs, row.project) ? needs : '';
}).find(Boolean);

export function ActionButtons({ rows, most = 5 }) {
  const actions = actionsOf(rows);
  const others = actions.filter((action) => action.name !== 'delete');
  const possible = others.filter((action) => !untimely(action, rows) || PHASES[rows[0].kind]?.[action.name]);
  const first = [...possible, ...others.filter((action) => !possible.includes(action))].slice(0, most);
  const shown = [...others.filter((action) => first.includes(action)), ...actions.filter((action) => action.name === 'delete')];
  const rest = others.filter((action) => !first.includes(action));
  const start = (action) => startAction(action, rows);
  return html`${shown.map((action) => html`<${ActionButton} key=${action.name} action=${action} rows=${rows} onStart=${start} />`)}
    ${rest.length > 0 && html`<select aria-label="More actions" onChange=${(event) => {
      const action = rest.find((each) => each.name === event.target.value);
      event.target.value = '';
      if (action) start(action);
    }}><option value="">More…</option>${rest.map((action) => html`
      <option value=${action.name} disabled=${Boolean(missing(action, rows) || untimely(action, rows))}>${title(action.name)}</option>`)}</select>`}`;
}

// What is harmless and asks for nothing is done at once; all else is asked about first.
const HARMLESS = { vm: ['start', 'resume', 'release'], container: ['start', 'release'], job: ['release'], node: ['uncordon'] };
export const startAction = (action, rows, first = {}) => (rows.length === 1 && HARMLESS[rows[0].kind]?.includes(action.name) ? run(action, rows[0]) : open(rows.length === 1 && rows[0].kind === 'deployment' && action.name === 'update'
  ? html`<${UpdateDialog} row=${rows[0]} />` : html`<${ActionDialog} action=${action} rows=${rows} first=${first} />`));

function ActionButton({ action, rows, onStart }) {
  const lacks = missing(action, rows);
  const late = untimely(action, rows);
  return html`<button type="button" class=${action.name === 'delete' ? 'bad' : ''} disabled=${Boolean(lacks || late)}
    title=${lacks ? `you lack the permission ${lacks}` : late || action.summary} onClick=${() => onStart(action)}>${title(action.name)}</button>`;
}

function ActionDialog({ action, rows, first }) {
  const [given, setGiven] = useState(first);
  const described = useDescribed(rows[0].kind);
  const [typed, setTyped] = useState('');
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [done, setDone] = useState(0);
  const one = rows.length === 1 ? rows[0] : null;
  const what = one ? `${kinds.value.get(one.kind).title} ${one.name}` : `${rows.length} objects`;
  const wantsName = action.name === 'delete';
  const wanted = one ? one.name : String(rows.length);
  const input = described?.actions.find((each) => each.name === action.name)?.input ?? [];
  const flags = flagsOf(input, given);
  const lines = rows.slice(0, 3).map((row) => command(kinds.value.get(row.kind), action.name, row.name, { project: row.project, flags }));
  const run = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    let count = 0;
    for (const row of rows) {
      try {
        await perform(action, row, valuesOf(input, given));
        setDone(count += 1);
      } catch (problem) {
        setError(problem);
        setBusy(false);
        if (count) notice(`${action.name}: ${count} of ${rows.length} done`);
        return;
      }
    }
    close();
    notice(one ? `${title(action.name)}: ${what} accepted` : `${title(action.name)}: ${count} accepted`);
  };
  return html`<form onSubmit=${run}>
    <h2 id="dialog-title">${title(action.name)} ${what}</h2>
    <p class="soft">${action.summary}.</p>
    ${!one && html`<p class="mono">${rows.slice(0, 12).map((row) => row.name).join(', ')}${rows.length > 12 ? `, and ${rows.length - 12} more` : ''}</p>`}
    ${!described && html`<p class="soft">Loading…</p>`}
    ${input.map((field) => html`<${Field} key=${field.path} field=${field} value=${given[field.path]} wrong=${isAbout(error, field.path) ? error.message : ''}
      onInput=${(value) => setGiven({ ...given, [field.path]: value })} />`)}
    ${wantsName && html`<label class="field">Type <b class="mono">${wanted}</b> to confirm
      <input autocomplete="off" value=${typed} onInput=${(event) => setTyped(event.target.value)} /></label>`}
    <${ProblemBox} error=${error} />
    <${Command} words=${lines.join('\n') + (rows.length > 3 ? `\n… (${rows.length} commands)` : '')} />
    <div class="row">
      <button class=${DANGEROUS.has(action.name) ? 'bad' : 'main-action'} disabled=${busy || !described || (wantsName && typed !== wanted)}>
        ${busy ? `${done} of ${rows.length}…` : `${title(action.name)} ${what}`}</button>
      <button type="button" onClick=${close}>Close</button>
    </div>
  </form>`;
}

export function perform(action, row, body) {
  const kind = kinds.value.get(row.kind);
  if (action.name === 'delete') return request('DELETE', `${pathOf(kind, row.project, row.name)}?uid=${encodeURIComponent(row.uid ?? '')}`);
  return post(pathOf(kind, row.project, row.name, action.name), body);
}

export const run = async (action, row, body) => {
  try { await perform(action, row, body ?? {}); notice(`${title(action.name)}: ${row.name} accepted`); } catch (error) { noticeOf(error); }
};

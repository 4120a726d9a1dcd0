// Verbs on objects, derived from the kinds: what may be done, with which fields, and the command that does the same.
import { useState } from 'preact/hooks';
import { html } from '../html.js';
import { command, size } from '../format.js';
import { pathOf, post, request } from '../api.js';
import { kinds, may, notice, noticeOf } from '../state.js';
import { close, open } from './dialog.js';
import { Command, ProblemBox } from './parts.js';

const DANGEROUS = new Set(['delete', 'drain', 'maintenance', 'undo', 'cancel', 'cancel-lease', 'stop']);
const title = (verb) => verb.charAt(0).toUpperCase() + verb.slice(1).replaceAll('-', ' ');

// The verbs that all of these rows' kinds have, with the permission that each needs.
export function actionsOf(rows) {
  const of = [...new Set(rows.map((row) => row.kind))].map((name) => kinds.value.get(name)).filter(Boolean);
  if (!of.length) return [];
  const all = of.map((kind) => [...(kind.actions ?? []), ...(kind.delete ? [{ name: 'delete', summary: `Delete ${kind.title}`, needs: kind.delete, input: [] }] : [])]);
  return all[0].filter((action) => all.every((others) => others.some((other) => other.name === action.name)));
}

// Why none of these rows can have it now; '' if one can.
export const untimely = (action, rows) => {
  const late = rows.filter((row) => row.phase && kinds.value.get(row.kind)?.actions?.find((each) => each.name === action.name)?.phases?.length
    && !kinds.value.get(row.kind).actions.find((each) => each.name === action.name).phases.includes(row.phase));
  return late.length === rows.length ? `not while ${rows.length === 1 ? 'it is' : 'they are'} ${[...new Set(late.map((row) => row.phase))].join(', ')}` : '';
};

export const missing = (action, rows) => rows.map((row) => {
  const needs = kinds.value.get(row.kind)?.actions?.find((each) => each.name === action.name)?.needs ?? action.needs;
  return needs && !may(needs, row.project) ? needs : '';
}).find(Boolean);

export function ActionButtons({ rows, most = 5 }) {
  const actions = actionsOf(rows);
  const others = actions.filter((action) => action.name !== 'delete');
  const shown = [...others.slice(0, most), ...actions.filter((action) => action.name === 'delete')];
  const rest = others.slice(most);
  const start = (action) => open(html`<${ActionDialog} action=${action} rows=${rows} />`);
  return html`${shown.map((action) => html`<${ActionButton} key=${action.name} action=${action} rows=${rows} onStart=${start} />`)}
    ${rest.length > 0 && html`<select aria-label="More actions" onChange=${(event) => {
      const action = rest.find((each) => each.name === event.target.value);
      event.target.value = '';
      if (action) start(action);
    }}><option value="">More…</option>${rest.map((action) => html`
      <option value=${action.name} disabled=${Boolean(missing(action, rows) || untimely(action, rows))}>${title(action.name)}</option>`)}</select>`}`;
}

function ActionButton({ action, rows, onStart }) {
  const lacks = missing(action, rows);
  const late = untimely(action, rows);
  return html`<button type="button" class=${action.name === 'delete' ? 'bad' : ''} disabled=${Boolean(lacks || late)}
    title=${lacks ? `you lack the permission ${lacks}` : late || action.summary} onClick=${() => onStart(action)}>${title(action.name)}</button>`;
}

function ActionDialog({ action, rows }) {
  const [given, setGiven] = useState({});
  const [typed, setTyped] = useState('');
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [done, setDone] = useState(0);
  const one = rows.length === 1 ? rows[0] : null;
  const what = one ? `${kinds.value.get(one.kind).title} ${one.name}` : `${rows.length} objects`;
  const wantsName = action.name === 'delete';
  const wanted = one ? one.name : String(rows.length);
  const input = action.input ?? [];
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
    ${input.map((field) => html`<${Field} key=${field.path} field=${field} value=${given[field.path]} wrong=${error?.field?.endsWith(field.path)}
      onInput=${(value) => setGiven({ ...given, [field.path]: value })} />`)}
    ${wantsName && html`<label class="field">Type <b class="mono">${wanted}</b> to confirm
      <input autocomplete="off" value=${typed} onInput=${(event) => setTyped(event.target.value)} /></label>`}
    <${ProblemBox} error=${error} />
    <${Command} words=${lines.join('\n') + (rows.length > 3 ? `\n… (${rows.length} commands)` : '')} />
    <div class="row">
      <button class=${DANGEROUS.has(action.name) ? 'bad' : 'main-action'} disabled=${busy || (wantsName && typed !== wanted)}>
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

// One field of a form, by its type in the API's description.
export function Field({ field, value, onInput, wrong }) {
  const id = `field-${field.path.replaceAll('.', '-')}`;
  const label = field.path.replace(/^(spec|input)\./, '').replaceAll('_', ' ');
  const type = field.type ?? '';
  let control;
  if (field.choices?.length) {
    control = html`<select id=${id} value=${value ?? ''} onChange=${(event) => onInput(event.target.value)}>
      <option value="">${field.default !== undefined && field.default !== null && field.default !== '' ? `default: ${field.default}` : '–'}</option>
      ${field.choices.map((choice) => html`<option value=${choice}>${choice}</option>`)}</select>`;
  } else if (type === 'true or false') {
    control = html`<input id=${id} type="checkbox" checked=${value ?? field.default ?? false} onChange=${(event) => onInput(event.target.checked)} />`;
  } else {
    control = html`<input id=${id} value=${value ?? ''} autocomplete="off" placeholder=${placeholder(field)} onInput=${(event) => onInput(event.target.value)} />`;
  }
  return html`<label class=${`field ${wrong ? 'wrong' : ''}`} for=${id}><span>${label}</span>${control}${field.help && html`<small>${field.help}</small>`}</label>`;
}
const EXAMPLES = { size: '4G', duration: '30s', time: '2026-12-24T22:00:00Z', map: 'key=value, …', cores: '0.5' };
function placeholder(field) {
  if (field.default !== undefined && field.default !== null && field.default !== '' && typeof field.default !== 'object') return `default: ${field.type === 'size' ? size(field.default) : field.default}`;
  return EXAMPLES[field.type] ?? (/^list of/.test(field.type ?? '') ? 'one, two, …' : '');
}

const bare = (path) => path.replace(/^(spec|input)\./, '');

// What was typed, as the API takes it: numbers and lists where the type says so, nothing where nothing was typed.
export function valuesOf(fields, given) {
  const out = {};
  for (const field of fields) {
    const value = given[field.path];
    if (value === undefined || value === '') continue;
    let at = out;
    const path = bare(field.path).split('.');
    for (const part of path.slice(0, -1)) at = at[part] ??= {};
    at[path.at(-1)] = typed(field.type ?? '', value);
  }
  return out;
}
const scalar = (text) => { try { const found = JSON.parse(text); return typeof found === 'object' ? text : found; } catch { return text; } };
// Types as the API's description names them: whole number, size, list of text, map, fields.
function typed(type, value) {
  if (typeof value !== 'string') return value;
  const words = () => value.split(',').map((word) => word.trim()).filter(Boolean);
  if (/number|cores/.test(type) && value.trim() !== '' && !Number.isNaN(Number(value))) return Number(value);
  if (/^\s*[[{]/.test(value) && !/^(text|expression|word)$/.test(type)) { try { return JSON.parse(value); } catch { return value; } }
  if (/^list of /.test(type)) return words();
  if (type === 'map of values') return Object.fromEntries(words().map((word) => { const [key, ...rest] = word.split('='); return [key, scalar(rest.join('='))]; }));
  if (type === 'map') return Object.fromEntries(words().map((word) => { const [key, ...rest] = word.split('='); return [key, rest.join('=')]; }));
  return value;
}
export const flagsOf = (fields, given) => Object.fromEntries(fields.map((field) => [bare(field.path).replaceAll('.', '-'), given[field.path]]));

export const run = async (action, row, body) => {
  try { await perform(action, row, body ?? {}); notice(`${title(action.name)}: ${row.name} accepted`); } catch (error) { noticeOf(error); }
};

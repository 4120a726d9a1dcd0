// Fields of forms, by their types in the API's description, and what was typed there as the API takes it.
import { useState } from 'preact/hooks';
import { html } from '../html.js';
import { size } from '../format.js';

// One field of a form, by its type in the API's description.
// `wrong`: what is wrong with it, in words; `choices`: what it may name, as [{name, words}].
export function Field({ field, value, onInput, wrong = '', choices = null }) {
  const id = `field-${field.path.replaceAll('.', '-')}`;
  const label = bare(field.path).replaceAll('_', ' ');
  const [isTyped, setTyped] = useState(false);
  const state = { id, 'aria-invalid': wrong ? 'true' : undefined, 'aria-describedby': wrong ? `${id}-wrong` : undefined };
  const type = field.type ?? '';
  let control;
  if (choices?.length && isList(field)) return html`<${Several} field=${field} label=${label} id=${id} value=${value} onInput=${onInput} wrong=${wrong} choices=${choices} />`;
  if (choices?.length && !isTyped && (!value || choices.some((each) => each.name === value))) {
    control = html`<select ...${state} required=${field.required} value=${value ?? ''} onChange=${(event) => (event.target.value === OTHER ? setTyped(true) : onInput(event.target.value))}>
      <option value="">${field.required ? 'choose…' : placeholder(field) || NOTHING[bare(field.path)] || '–'}</option>
      ${choices.map((each) => html`<option key=${each.name} value=${each.name}>${each.words ?? each.name}</option>`)}<option value=${OTHER}>another name…</option></select>`;
  } else if (field.choices?.length) {
    control = html`<select ...${state} value=${value ?? ''} onChange=${(event) => onInput(event.target.value)}>
      <option value="">${field.default !== undefined && field.default !== null && field.default !== '' ? `default: ${field.default}` : '–'}</option>
      ${field.choices.map((choice) => html`<option value=${choice}>${choice}</option>`)}</select>`;
  } else if (type === 'true or false') {
    control = html`<input ...${state} type="checkbox" checked=${value ?? field.default ?? false} onChange=${(event) => onInput(event.target.checked)} />`;
  } else {
    control = html`<input ...${state} value=${value ?? ''} autocomplete="off" placeholder=${placeholder(field)} onInput=${(event) => onInput(event.target.value)} />`;
  }
  return html`<label class=${`field ${wrong ? 'wrong' : ''}`} for=${id}><span>${label}</span>${control}
    ${wrong && html`<small class="bad" id=${`${id}-wrong`}>${wrong}</small>`}${field.help && html`<small>${field.help}</small>`}</label>`;
}
const OTHER = '\u0000another'; // no name has it
const NOTHING = { node: 'where it fits best', disk: 'the image’s own size' };
const isList = (field) => /^list of/.test(field.type ?? '');

function Several({ field, label, id, value, onInput, wrong, choices }) {
  const chosen = (value ?? '').split(',').map((word) => word.trim()).filter(Boolean);
  const change = (name, on) => onInput([...chosen.filter((each) => each !== name), ...(on ? [name] : [])].join(', '));
  return html`<fieldset id=${id} tabindex="-1" class=${`field ${wrong ? 'wrong' : ''}`} aria-describedby=${wrong ? `${id}-wrong` : undefined}><legend>${label}</legend>
    <div class="row">${choices.map((each) => html`<label key=${each.name} class="row"><input type="checkbox" checked=${chosen.includes(each.name)} onChange=${(event) => change(each.name, event.target.checked)} /> ${each.words ?? each.name}</label>`)}</div>
    ${wrong && html`<small class="bad" id=${`${id}-wrong`}>${wrong}</small>`}${field.help && html`<small>${field.help}</small>`}</fieldset>`;
}

// Whether a refusal is about the field, or a part of it: spec.ssh_keys[0].
export const isAbout = (error, path) => { const rest = error?.field?.replace(/^(input\.)?/, ''); return Boolean(rest) && (rest === path || rest === `spec.${path}` || (rest.startsWith(path) && /^[.[]/.test(rest.slice(path.length)))); };
const EXAMPLES = { size: '4G', duration: '30s', time: '2026-12-24T22:00:00Z', map: 'key=value, …', cores: '0.5' };
function placeholder(field) {
  if (field.default === 0 && NOTHING[bare(field.path)]) return NOTHING[bare(field.path)];
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


// A struct as rows of words: empty fields are left out, sizes, times and lengths of time are written for people, names of nodes are
// links. What is nested is a line if it is short, and opened by a click if it is long.
import { html } from '../html.js';
import { moment, number, size, span } from '../format.js';
import { kinds, toObject } from '../state.js';

const BYTES = /(^|_)(memory|disk|size|bytes|storage)$/;
const TIMES = /_(at|since|start|end|until)$|^(at|since|start|end|until)$/;
const SPANS = /(^|_)(seconds|grace|timeout|duration|interval|cooldown|min_healthy|keep_old|every|drain)$/;
const MOST_LINE = 160; // characters of a nested struct that is written as a line
const MOST = 60; // fields, and entries of a list
const isStruct = (value) => value !== null && typeof value === 'object';
const isRef = (value) => typeof value.kind === 'string' && typeof value.name === 'string' && kinds.value.has(value.kind);
const isEmpty = (value) => value === null || value === undefined || value === '' || value === false || (isStruct(value) && !Object.keys(value).length);

// `types`: how the API's description names a field's type, by its path below `at`.
export function Facts({ of, skip = [], types, at = '' }) {
  const rows = Object.entries(of ?? {}).filter(([key, value]) => !skip.includes(key) && !isEmpty(value));
  if (!rows.length) return null;
  return html`<dl class="facts">${rows.slice(0, MOST).map(([key, value]) => html`<dt key=${key}>${key.replaceAll('_', ' ')}</dt><dd><${Value} name=${key} value=${value} types=${types} at=${`${at}.${key}`} /></dd>`)}</dl>`;
}

function Value({ name, value, types, at }) {
  if (!isStruct(value)) return typeof value === 'string' && ['node', 'target', 'source'].includes(name) && /^[a-z0-9-]+$/.test(value) && kinds.value.has('node')
    ? html`<a class="mono" href=${toObject({ kind: 'node', name: value })}>${value}</a>` : scalar(name, value, types?.get(at));
  if (isRef(value)) return html`<a class="mono" href=${toObject(value)}>${value.kind}/${value.name}</a>`;
  const line = inWords(name, value, types, at);
  if (line !== null && line.length <= MOST_LINE) return line;
  const count = Object.keys(value).length;
  return html`<details><summary>${Array.isArray(value) ? `${count} entries` : `${count} fields`}</summary>
    ${Array.isArray(value) ? html`<ol>${value.slice(0, MOST).map((each, place) => html`<li key=${place}>${isStruct(each) && !isRef(each) ? html`<${Facts} of=${each} types=${types} at=${`${at}[]`} />` : html`<${Value} name=${name} value=${each} at=${`${at}[]`} />`}</li>`)}</ol>`
      : html`<${Facts} of=${value} types=${types} at=${at} />`}</details>`;
}

function scalar(name, value, type) {
  if (typeof value === 'number') {
    if (type === 'size' || (!type && BYTES.test(name))) return size(value);
    if (type === 'duration' || (!type && SPANS.test(name))) return span(value);
    if (TIMES.test(name) && value > 1e9) return moment(value);
    return number(value, 3);
  }
  if (value === true) return 'yes';
  const text = String(value);
  return text.length > 400 ? `${text.slice(0, 400)}…` : text;
}

// `cpu 8, memory 21.2 GiB`; null: it is deeper than a line.
function inWords(name, value, types, at) {
  if (Array.isArray(value)) return value.some(isStruct) ? null : value.map((each) => scalar(name, each)).join(', ');
  const words = [];
  for (const [key, each] of Object.entries(value)) {
    if (isEmpty(each)) continue;
    const inner = isStruct(each) ? (Array.isArray(each) ? inWords(key, each) : null) : scalar(key, each, types?.get(`${at}.${key}`));
    if (inner === null) return null;
    words.push(`${key.replaceAll('_', ' ')} ${inner}`);
  }
  return words.join(', ');
}

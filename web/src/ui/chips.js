// The kinds of a page whose table shows one of them, as buttons; `all`: also those together.
import { html } from '../html.js';
import { many } from '../format.js';
import { kinds, setQuery } from '../state.js';

export function KindChips({ names, chosen, all }) {
  const chip = (name, words) => html`<button key=${name} type="button" class="chip" aria-pressed=${chosen === name} onClick=${() => setQuery({ kind: name, phase: '', ...(all ? {} : { sort: '' }) })}>${words}</button>`;
  return html`<div class="row" role="group" aria-label="Kinds">${all && chip('', 'All')}${names.map((name) => chip(name, many(kinds.value.get(name))))}</div>`;
}

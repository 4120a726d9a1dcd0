// Small pieces that every page uses.
import { useState } from 'preact/hooks';
import { html } from '../html.js';
import { age, moment, number, share, size } from '../format.js';
import { notice, now, toObject } from '../state.js';

export const State = ({ phase, health }) => html`<span class=${`state ${health || 'unknown'}`}>${phase || 'Unknown'}</span>`;

export const Age = ({ since }) => html`<time title=${since ? moment(since) : ''}>${age(since ? now.value - since : null)}</time>`;

export const Name = ({ row, children }) => html`<a class="mono" href=${toObject(row)}>${children ?? row.name}</a>`;

// What of a capacity is given (broad), used (narrow) and promised to leases that begin later (hatched), with its figures as text.
export function Bar({ title, of, unit, children }) {
  const { capacity = 0, allocated = 0 } = of ?? {};
  const [say, more] = describe(of, unit);
  return html`<div class="amount"><div class="over"><${Meter} title=${title} of=${of} unit=${unit} />${children}</div>
    <small class="soft">${[`${say(allocated)} / ${say(capacity)}`, ...more].join(', ')}</small></div>`;
}
function describe({ used, promised = 0 } = {}, unit) {
  const say = unit === 'cores' ? (value) => number(value, value < 10 ? 2 : 1) : size;
  return [say, [used == null ? '' : `${say(used)} used`, promised ? `${say(promised)} promised` : ''].filter(Boolean)];
}

// The bar alone; its label has the figures.
export function Meter({ title, of, unit }) {
  const { capacity = 0, allocated = 0, used, promised = 0 } = of ?? {};
  const [say, more] = describe(of, unit);
  const wide = (part) => `${(100 * Math.min(1, share(part, capacity))).toFixed(1)}%`;
  const words = [`${say(allocated)} of ${say(capacity)} given`, ...more].join(', ');
  return html`<div class=${`bar ${share(allocated, capacity) > 0.9 ? 'full' : ''}`} role="img" aria-label=${`${title}: ${words}`} title=${words}>
    ${promised > 0 && html`<i class="promised" style=${{ left: wide(allocated), width: wide(promised) }}></i>`}
    <i style=${{ width: wide(allocated) }}></i>
    ${used != null && html`<i class="used" style=${{ width: wide(used) }}></i>`}</div>`;
}

export const Legend = () => html`<small class="key soft" aria-hidden="true">${['given', 'used', 'promised'].map((each) => html`<span key=${each}><span class="bar"><i class=${each}></i></span>${each}</span>`)}</small>`;

// The weft command that does the same as a click.
export function Command({ words }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    try { await navigator.clipboard.writeText(words); setCopied(true); setTimeout(() => setCopied(false), 2000); } catch { notice('copy it by hand: the browser gave no access to its clipboard'); }
  };
  return html`<div class="command"><code>${words}</code><button type="button" class="plain" onClick=${copy}>${copied ? 'Copied' : 'Copy'}</button></div>`;
}

export const ProblemBox = ({ error }) => error && html`<div class="problem" role="alert">
  <strong>${error.message}</strong>
  ${error.field && html`<div>field: <code>${error.field}</code></div>`}
  ${error.hint && html`<div class="soft">${error.hint}</div>`}
  ${error.request && html`<div class="soft">request ${error.request}</div>`}
</div>`;

export const Empty = ({ words, command }) => html`<div class="empty"><p>${words}</p>${command && html`<${Command} words=${command} />`}</div>`;

export function Tabs({ tabs, current, label }) {
  return html`<nav class="tabs" aria-label=${label}>${tabs.map(([name, words, href]) => html`
    <a key=${name} href=${href} aria-current=${name === current ? 'page' : undefined}>${words}</a>`)}</nav>`;
}

// Small pieces that every page uses.
import { useState } from 'preact/hooks';
import { html } from '../html.js';
import { age, moment, number, percent, share, size } from '../format.js';
import { notice, now, toObject } from '../state.js';

export const State = ({ phase, health }) => html`<span class=${`state ${health || 'unknown'}`}>${phase || 'Unknown'}</span>`;

export const Age = ({ since }) => html`<time title=${since ? moment(since) : ''}>${age(since ? now.value - since : null)}</time>`;

export const Name = ({ row, children }) => html`<a class="mono" href=${toObject(row)}>${children ?? row.name}</a>`;

// What is allocated (broad) and used (narrow) of a capacity, with its figures as text.
export function Bar({ title, of, unit }) {
  const { capacity = 0, allocated = 0, used } = of ?? {};
  const say = unit === 'cores' ? (value) => number(value, 1) : size;
  const given = share(allocated, capacity);
  const really = used == null ? null : share(used, capacity);
  const words = `${say(allocated)} of ${say(capacity)} allocated${used == null ? '' : `, ${say(used)} used`}`;
  return html`<div role="img" aria-label=${`${title}: ${words}`} title=${words}>
    <div class=${`bar ${given > 0.9 ? 'full' : ''}`}>
      <i style=${{ width: percent(Math.min(1, given)).replace(' ', '') }}></i>
      ${really != null && html`<i class="used" style=${{ width: percent(Math.min(1, really)).replace(' ', '') }}></i>`}
    </div>
    <small class="soft">${say(allocated)} / ${say(capacity)}${used == null ? '' : `, ${say(used)} used`}</small>
  </div>`;
}

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

// Any kind: its table and its actions, from the kind's record. A kind that the server learns appears here by itself.
import { html } from '../html.js';
import { many } from '../format.js';
import { kinds, link, route } from '../state.js';
import { CreateButton } from '../ui/create.js';
import { Table } from '../ui/table.js';

export function Kind() {
  const plural = route.value.path[1];
  const kind = [...kinds.value.values()].find((each) => each.plural === plural);
  if (!kind) return html`<h1>There is no kind ${plural}</h1><p><a href="#/kinds">All kinds</a></p>`;
  return html`<div class="row"><h1 class="grow">${many(kind)}</h1><${CreateButton} names=${[kind.name]} /></div>
    <p class="soft">${kind.summary}.</p>
    <${Table} key=${kind.name} names=${[kind.name]} empty=${`There are no ${many(kind)} here.`} command=${kind.writer === 'people' ? `weft ${kind.name} create NAME` : `weft ${kind.name} list`} />`;
}

export function Kinds() {
  const topics = new Map();
  for (const kind of kinds.value.values()) {
    const topic = kind.topic || (kind.writer === 'people' ? 'Others' : 'Written by weft');
    topics.set(topic, [...(topics.get(topic) ?? []), kind]);
  }
  return html`<h1>All kinds</h1><div class="panels">${[...topics].map(([topic, list]) => html`<section class="panel" key=${topic}><h2>${topic}</h2>
    <dl class="facts">${list.map((kind) => html`<dt><a href=${link(['k', kind.plural])}>${many(kind)}</a></dt><dd class="soft">${kind.summary}</dd>`)}</dl></section>`)}</div>`;
}

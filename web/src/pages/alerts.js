// What is wrong now, and what warned lately.
import { useEffect } from 'preact/hooks';
import { html } from '../html.js';
import { events, show, summary } from '../stream.js';
import { kinds, project } from '../state.js';
import { EventList } from '../ui/events.js';
import { Age, Name, State } from '../ui/parts.js';

export function Alerts() {
  useEffect(() => { show({ events: { project: project.value } }); }, [project.value]);
  const problems = summary.value?.problems ?? [];
  const warnings = events.value.filter((event) => event.type === 'Warning');
  return html`<h1>Alerts</h1>
    <section class="panel"><h2>Wrong now (${summary.value?.problems_total ?? problems.length})</h2>
      ${!problems.length && html`<p class="state running">Nothing is wrong.</p>`}
      <ul class="list">${problems.map((each) => html`<li key=${`${each.kind}/${each.project}/${each.name}`}><div class="row"><${State} phase=${each.phase} health=${each.health} />
        <span class="soft">${kinds.value.get(each.kind)?.title}</span><${Name} row=${each} />${each.since && html`<span class="soft"><${Age} since=${each.since} /></span>`}</div><div>${each.note}</div>${each.hint && html`<div class="soft">${each.hint}</div>`}</li>`)}</ul></section>
    <section class="panel"><h2>Newest warnings</h2><${EventList} events=${warnings} /></section>`;
}

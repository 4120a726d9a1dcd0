// What is wrong now, and what warned lately.
import { useEffect } from 'preact/hooks';
import { html } from '../html.js';
import { events, show, summary } from '../stream.js';
import { project } from '../state.js';
import { EventList } from '../ui/events.js';
import { ProblemList } from './overview.js';

export function Alerts() {
  useEffect(() => { show({ events: { project: project.value } }); }, [project.value]);
  const problems = summary.value?.problems ?? [];
  const warnings = events.value.filter((event) => event.type === 'Warning');
  return html`<h1>Alerts</h1>
    <section class="panel"><h2>Wrong now (${summary.value?.problems_total ?? problems.length})</h2>
      ${!problems.length && html`<p class="state running">Nothing is wrong.</p>`}
      <${ProblemList} problems=${problems} /></section>
    <section class="panel"><h2>Newest warnings</h2><${EventList} events=${warnings} /></section>`;
}

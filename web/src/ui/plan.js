// A rebalance plan: its migrations as a table, and the nodes' load before and after it.
import { html } from '../html.js';
import { duration, percent, size } from '../format.js';
import { toObject } from '../state.js';

const MOST = 200; // rows
const LANE = { height: 26, name: 110, width: 620, bar: 8 };

// `states`: how far each step is, if the plan has begun.
export function PlanView({ spec, states = [] }) {
  const steps = (spec.steps ?? []).slice(0, MOST);
  return html`<p>Score <b>${spec.score_before.toFixed(2)}</b> → <b>${spec.score_after.toFixed(2)}</b> <span class="soft">(lower is better)</span></p>
    ${spec.loads?.length > 0 && html`<${Loads} loads=${spec.loads} />`}
    <div class="scroll whole" tabindex="0" role="region" aria-label="Migrations of the plan"><table>
      <thead><tr><th>WORKLOAD</th><th>PROJECT</th><th>FROM</th><th>TO</th><th class="number">BYTES</th><th class="number">TIME</th>${states.length > 0 && html`<th>STATE</th>`}<th>WHY</th></tr></thead>
      <tbody>${steps.map((step, number) => { const [kind, name] = step.workload.split('/'); return html`<tr key=${`${step.project}/${step.workload}`}>
        <td><a class="mono" href=${toObject({ kind, project: step.project, name })}>${step.workload}</a></td><td>${step.project}</td><td class="mono">${step.from}</td><td class="mono">${step.to}</td>
        <td class="number">${size(step.bytes)}</td><td class="number">${duration(step.seconds * 1e9)}</td>
        ${states.length > 0 && html`<td>${states[number]?.state ?? ''} ${states[number]?.message ?? ''}</td>`}<td style=${{ maxWidth: 'none' }}>${step.reason}</td></tr>`; })}</tbody></table></div>
    ${spec.steps.length > MOST && html`<p class="soft">${spec.steps.length - MOST} more.</p>`}`;
}

// Of each node two bars, of its cores and of its memory: filled is after, the mark is before.
function Loads({ loads }) {
  const at = (part) => LANE.name + Math.min(1, part) * (LANE.width - LANE.name - 60);
  const words = loads.map((load) => `${load.node}: cores ${percent(load.cpu_before)} to ${percent(load.cpu_after)}, memory ${percent(load.memory_before)} to ${percent(load.memory_after)}`);
  return html`<figure style=${{ margin: '0 0 12px' }}><svg style=${{ maxWidth: `${LANE.width}px`, width: '100%' }} viewBox=${`0 0 ${LANE.width} ${loads.length * LANE.height}`} role="img" aria-label=${`Load before and after. ${words.join('; ')}`}>
    ${loads.map((load, row) => html`<g key=${load.node} transform=${`translate(0 ${row * LANE.height})`}>
      <text x="0" y="15" style=${{ fill: 'currentColor', fontSize: '12px' }}>${load.node.slice(0, 14)}</text>
      ${[['cpu', 3, 'var(--running)'], ['memory', 13, 'var(--changing)']].map(([name, y, colour]) => html`<g key=${name}>
        <rect x=${LANE.name} y=${y} width=${at(1) - LANE.name} height=${LANE.bar} style=${{ fill: 'currentColor', opacity: 0.12 }} />
        <rect x=${LANE.name} y=${y} width=${at(load[`${name}_after`]) - LANE.name} height=${LANE.bar} style=${{ fill: colour }} />
        <rect x=${at(load[`${name}_before`]) - 1} y=${y - 2} width="3" height=${LANE.bar + 4} style=${{ fill: 'currentColor' }} />
        <text x=${at(1) + 6} y=${y + 8} style=${{ fill: 'currentColor', fontSize: '10px' }}>${percent(load[`${name}_after`])}</text></g>`)}</g>`)}</svg>
    <figcaption class="soft">Cores above, memory below, as shares of each node; the mark shows the load before.</figcaption></figure>`;
}

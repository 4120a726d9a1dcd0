// Who sends how much to whom: what the nodes of a project's workloads have recorded, as a heat map and a table. As
// protocol/traffic.py has it: each byte once, from its sender's node.
import { useState } from 'preact/hooks';
import { html } from '../html.js';
import { number, size } from '../format.js';
import { may, project, toObject } from '../state.js';
import { readStream } from '../tabs/stream.js';

const OUTSIDE = 'outside';
const OTHER_PROJECT = 'a workload of another project';
const MOST = 100; // workloads that are asked
const MOST_DRAWN = 30;
const AT_ONCE = 6;
const CELL = 26;

// `onFound(traffic, nameOf)`: what was found, and how it names a guest.
export function Traffic({ guests, onFound }) {
  const [found, setFound] = useState(null);
  const [state, setState] = useState('');
  const [since, setSince] = useState(0);
  const asked = guests.filter((guest) => guest.status?.node && may(`${guest.kind}:flows`, guest.project)).slice(0, MOST);
  const read = async (seconds) => {
    setSince(seconds);
    setState(`Asking the nodes of ${asked.length} workloads…`);
    const answers = new Map();
    const silent = [];
    const rest = [...asked];
    const ask = async () => {
      for (let guest = rest.shift(); guest; guest = rest.shift()) {
        try {
          const { flows } = JSON.parse(await readStream({ kind: guest.kind, project: guest.project, name: guest.name }, 'flows', { since: seconds }));
          answers.set(nameOf(guest), [...(answers.get(nameOf(guest)) ?? []), ...flows.map((flow) => ({ ...flow, project: guest.project }))]);
        } catch { silent.push(nameOf(guest)); }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, ask));
    const matrix = makeMatrix(asked.map(nameOf), answers);
    setFound(matrix);
    onFound?.(matrix.traffic, nameOf);
    setState(silent.length ? `No answer about ${silent.join(', ')}.` : '');
  };
  if (!asked.length) return null;
  return html`<section class="panel broad"><div class="row"><h2 class="grow">Who sends how much to whom</h2>
      ${[[3600, 'Last hour'], [86_400, 'Last day']].map(([seconds, words]) => html`<button key=${seconds} type="button" class="chip" aria-pressed=${since === seconds} onClick=${() => read(seconds)}>${words}</button>`)}</div>
    <p class="soft" role="status">${state}</p>
    ${found && !found.traffic.length && html`<p>Nothing was sent.</p>`}
    ${found?.traffic.length > 0 && html`<${HeatMap} found=${found} />
      <div class="scroll whole" tabindex="0" role="region" aria-label="Traffic"><table><thead><tr><th>SOURCE</th><th>DESTINATION</th><th class="number">BYTES</th><th class="number">PACKETS</th></tr></thead>
        <tbody>${found.traffic.slice(0, 200).map((one) => html`<tr key=${`${one.source} ${one.destination}`}><td><${End} name=${one.source} guests=${asked} /></td><td><${End} name=${one.destination} guests=${asked} /></td>
          <td class="number">${size(one.bytes)}</td><td class="number">${number(one.packets)}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}

const nameOf = (guest) => (project.value ? guest.name : `${guest.project}/${guest.name}`);

function End({ name, guests }) {
  const guest = guests.find((each) => nameOf(each) === name);
  return guest ? html`<a class="mono" href=${toObject(guest)}>${name}</a>` : html`<span class=${[OUTSIDE, OTHER_PROJECT].includes(name) ? 'soft' : 'mono'}>${name}</span>`;
}

function HeatMap({ found }) {
  const busy = found.workloads.filter((name) => found.traffic.some((one) => one.source === name || one.destination === name)).slice(0, MOST_DRAWN);
  const bytes = new Map(found.traffic.map((one) => [`${one.source} ${one.destination}`, one.bytes]));
  const most = Math.max(...bytes.values());
  const left = 8 + 7.5 * Math.min(24, Math.max(...busy.map((name) => name.length)));
  const width = left + busy.length * CELL + 8;
  const height = 24 + busy.length * CELL + 8;
  return html`<svg class="heat" style=${{ maxWidth: `${width * 1.2}px` }} viewBox=${`0 0 ${width} ${height}`} role="img" aria-label=${`Heat map of ${busy.length} rows; the table below has its figures`}>
    ${busy.map((row, y) => html`<g key=${row}>
      <text x=${left - 6} y=${24 + y * CELL + 17} text-anchor="end">${row.length > 24 ? `${row.slice(0, 23)}…` : row}</text>
      <text x=${left + y * CELL + CELL / 2} y="16" text-anchor="middle">${y + 1}</text>
      ${busy.map((column, x) => {
        const count = bytes.get(`${row} ${column}`) ?? 0;
        const depth = count ? Math.max(0.12, 1 - Math.log10(most / count) / 6) : 0;
        return html`<rect key=${column} x=${left + x * CELL + 1} y=${24 + y * CELL + 1} width=${CELL - 2} height=${CELL - 2} fill=${count ? 'var(--accent)' : 'var(--sunken)'} fill-opacity=${count ? depth : 1}>
          <title>${row} to ${column}: ${size(count)}</title></rect>`;
      })}</g>`)}
  </svg><p class="soft">Rows send; column n receives as row n names it. Darker is more, a sixth for each factor of ten; the darkest is ${size(most)}.</p>`;
}

function makeMatrix(workloads, answers) {
  const sent = new Map();
  const received = new Map();
  const add = (counts, source, destination, bytes, packets) => {
    const key = `${source} → ${destination}`;
    const one = counts.get(key) ?? { source, destination, bytes: 0, packets: 0 };
    one.bytes += bytes;
    one.packets += packets;
    counts.set(key, one);
  };
  for (const [name, flows] of answers) {
    for (const flow of flows.filter((each) => each.verdict !== 'refused')) {
      const told = flow.direction === 'out' ? flow.destination_name : flow.source_name;
      const peer = !told ? OUTSIDE : told === OTHER_PROJECT || project.value ? told : `${flow.project}/${told}`;
      add(sent, name, peer, flow.sent_bytes, flow.sent_packets);
      add(received, peer, name, flow.received_bytes, flow.packets - flow.sent_packets);
    }
  }
  const all = [...[...received.values()].filter((one) => !answers.has(one.source)), ...sent.values()].filter((one) => one.bytes || one.packets);
  const ends = new Set(all.flatMap((one) => [one.source, one.destination]));
  const rows = [...new Set([...workloads, ...ends])].filter((name) => name !== OUTSIDE && name !== OTHER_PROJECT).sort();
  return { workloads: [...rows, ...[OUTSIDE, OTHER_PROJECT].filter((name) => ends.has(name))], traffic: all.sort((a, b) => b.bytes - a.bytes) };
}

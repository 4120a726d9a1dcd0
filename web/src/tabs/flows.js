// Who a workload talks to: its connections, with their rates, from its node every two seconds.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { size } from '../format.js';
import { Command } from '../ui/parts.js';
import { follow } from './stream.js';

export function Flows({ row }) {
  const [flows, setFlows] = useState(null);
  const [state, setState] = useState('Reading…');
  useEffect(() => {
    let rest = '';
    return follow(row, 'flows', { watch: true }, {
      onText: (piece, isFirst) => {
        const lines = ((isFirst ? '' : rest) + piece).split('\n');
        rest = lines.pop();
        const newest = lines.filter(Boolean).at(-1);
        if (newest) { setFlows(grouped(JSON.parse(newest).flows)); setState(''); }
      },
      onLost: setState,
      onEnd: (words) => setState(words || 'the stream has ended'),
    });
  }, [row.uid]);
  return html`<p class="soft" role="status">${state}</p>
    ${flows && !flows.length && html`<p>It talks to nobody now.</p>`}
    ${flows?.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Flows"><table>
      <thead><tr><th>PROTOCOL</th><th>SOURCE</th><th>DESTINATION</th><th class="number">FLOWS</th><th class="number">BYTES</th><th class="number">RATE</th><th>VERDICT</th><th>NETWORK</th></tr></thead>
      <tbody>${flows.slice(0, 200).map((flow) => html`<tr key=${flow.key}><td>${flow.protocol}</td><td class="mono">${end(flow, 'source')}</td><td class="mono">${end(flow, 'destination')}</td>
        <td class="number">${flow.flows}</td><td class="number">${size(flow.bytes)}</td><td class="number">${flow.bytes_per_second == null ? '' : `${size(flow.bytes_per_second)}/s`}</td>
        <td><span class=${`state ${flow.verdict === 'allowed' ? 'running' : flow.verdict === 'refused' ? 'failed' : 'degraded'}`}>${flow.verdict === 'unanswered' ? 'sent, no answer' : flow.verdict}</span></td><td>${flow.network}</td></tr>`)}</tbody></table></div>`}
    <${Command} words=${`weft network flows --${row.kind} ${row.name} --watch`} />`;
}

const end = (flow, side) => `${flow[`${side}_name`] ?? ''} ${flow[side]}${side === 'destination' && flow[`${side}_port`] ? `:${flow[`${side}_port`]}` : ''}`.trim();

export function grouped(flows) {
  const groups = new Map();
  for (const flow of flows) {
    const key = [flow.protocol, flow.source, flow.destination, flow.destination_port, flow.verdict, flow.network].join(' ');
    const group = groups.get(key) ?? { ...flow, key, flows: 0, bytes: 0, bytes_per_second: null };
    group.flows += 1;
    group.bytes += flow.bytes;
    if (flow.bytes_per_second != null) group.bytes_per_second = (group.bytes_per_second ?? 0) + flow.bytes_per_second;
    groups.set(key, group);
  }
  return [...groups.values()].sort((a, b) => (b.bytes_per_second ?? 0) - (a.bytes_per_second ?? 0) || b.bytes - a.bytes);
}

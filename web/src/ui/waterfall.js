// A trace as a waterfall: a row for each span, its bar on a line of time, and what is known of the row that is pointed at or focused.
// Names and attributes come from anywhere, guests included: they are bounded, and isolated from the direction of what is around them.
import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get } from '../api.js';
import { duration, moment, percent } from '../format.js';
import { Command, ProblemBox } from './parts.js';
import { findLongest, listRows, readTree, shorten } from './spans.js';

const MOST_ROWS = 500;
const MOST_TEXT = 400;
const MOST_INDENT = 12; // levels that are indented: below, the name would have no place
const TICKS = 4;
const AGAIN_MS = 3000;
const SETTLED_SECONDS = 30; // nodes have brought what they did
const bounded = (text) => (String(text).length > MOST_TEXT ? `${String(text).slice(0, MOST_TEXT)}…` : String(text));

// Reads the trace, and again while it goes on.
export function Waterfall({ trace }) {
  const [tree, setTree] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    let isOver = false;
    let timer = 0;
    const read = async () => {
      try {
        const found = readTree(await get(`/v1/traces/${encodeURIComponent(trace)}`), Date.now() / 1000);
        if (isOver) return;
        setTree(found);
        setError(null);
        const isSettled = Date.now() / 1000 - found.beganAt - found.end / 1e9 > SETTLED_SECONDS;
        if (!isSettled) timer = setTimeout(read, AGAIN_MS);
      } catch (problem) {
        if (isOver) return;
        setError(problem);
        if (problem.status === 0 || problem.status >= 500) timer = setTimeout(read, AGAIN_MS);
      }
    };
    read();
    return () => { isOver = true; clearTimeout(timer); };
  }, [trace]);
  return html`<${ProblemBox} error=${error} />
    ${!tree && !error && html`<p class="soft">Reading the trace…</p>`}
    ${tree && html`<${Drawing} tree=${tree} />`}
    <${Command} words=${`weft trace ${trace}`} />`;
}

function Drawing({ tree }) {
  const rows = useMemo(() => listRows(tree), [tree]);
  const [chosen, setChosen] = useState('');
  const body = useRef(null);
  const shown = rows.slice(0, MOST_ROWS);
  const at = Math.max(0, shown.findIndex((row) => row.key === chosen));
  const total = Math.max(1, tree.end - tree.begin);
  const failed = shown.filter((row) => row.node.error && !row.isWait).length;
  const isOver = rows.every((row) => row.node.over);
  const onKey = (event) => {
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined || !shown[to]) return;
    event.preventDefault();
    body.current.querySelectorAll('button')[to].focus();
  };
  return html`<p>${duration(total)}, ${tree.count} ${tree.count === 1 ? 'span' : 'spans'}, began ${moment(tree.beganAt)}${isOver ? '' : ', not over yet'}
      ${failed > 0 && html` <span class="state failed">${failed} failed</span>`}</p>
    <div class="scroll waterfall" role="region" aria-label="Waterfall"><table>
      <thead><tr><th>SPAN</th><th>PROCESS</th><th class="axis"><div>${Array.from({ length: TICKS + 1 }, (_, tick) => html`<span key=${tick}>${tick ? duration((total * tick) / TICKS) : '0'}</span>`)}</div></th><th class="number">TIME</th></tr></thead>
      <tbody ref=${body} onKeyDown=${onKey}>${shown.map((row, index) => html`<tr key=${row.key} class=${index === at ? 'chosen' : ''} onMouseEnter=${() => setChosen(row.key)}>
        <td><button type="button" class="plain" tabindex=${index === at ? 0 : -1} aria-describedby="span-facts" onFocus=${() => setChosen(row.key)} onClick=${() => setChosen(row.key)}
          style=${{ paddingLeft: `${Math.min(row.depth, MOST_INDENT) * 12}px` }}><${Label} row=${row} /></button></td>
        <td class="soft"><bdi>${row.isWait ? '' : bounded(row.node.process)}</bdi></td>
        <td class="lane"><i class=${signOf(row)} style=${{ left: `${(100 * (row.begin - tree.begin)) / total}%`, width: `${(100 * (row.end - row.begin)) / total}%` }}></i></td>
        <td class="number">${duration(row.end - row.begin)}</td></tr>`)}</tbody></table></div>
    ${rows.length > MOST_ROWS && html`<p class="soft">and ${rows.length - MOST_ROWS} more rows: <code>weft trace ${tree.trace} -o json</code> has all spans</p>`}
    <p class="soft">● and a full bar: on the critical path, on which the end waited. Pale: beside it. Dotted: waiting.</p>
    ${shown[at] && html`<${Facts} row=${shown[at]} tree=${tree} />`}
    <p>Longest: ${findLongest(tree).map(([what, took], index) => html`${index ? ', ' : ''}<bdi>${bounded(what)}</bdi> ${duration(took)} (${percent(took / total)})`)}</p>`;
}

const signOf = (row) => (row.isWait ? 'wait' : `${row.node.critical ? 'critical' : ''} ${row.node.error ? 'failed' : ''}`.trim());

function Label({ row }) {
  if (row.isWait) return html`<span class="soft">waited for <bdi>${bounded(shorten(row.node.name))}</bdi></span>`;
  const { critical, error, name, over } = row.node;
  return html`<span class="sign" title=${critical ? 'on the critical path' : ''}>${critical ? '●' : ''}</span>${critical && html`<span class="hidden">on the critical path: </span>`}
    <bdi>${bounded(shorten(name))}</bdi>${error ? html` <span class="state failed">failed</span>` : !over && html` <span class="state changing">not over</span>`}`;
}

function Facts({ row, tree }) {
  const { node } = row;
  const facts = [
    ['began after', duration(row.begin - tree.begin)], ['took', duration(row.end - row.begin)],
    ...(row.isWait ? [] : [['process', node.process], ...(node.about ? [['about', node.about]] : []), ...(node.error ? [['error', node.error]] : []), ...node.attributes]),
  ];
  return html`<section class="panel" id="span-facts"><h2><bdi>${row.isWait ? 'waited for ' : ''}${bounded(node.name)}</bdi></h2>
    <dl class="facts">${facts.slice(0, 60).map(([key, value], index) => html`<dt key=${index}><bdi>${bounded(key)}</bdi></dt><dd><bdi>${bounded(value)}</bdi></dd>`)}</dl></section>`;
}

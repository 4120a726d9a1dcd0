// A table of any kinds: the server filters, sorts and cuts it into pages, and only the rows in view exist in the document. The URL
// carries filter, phase, sorting; j and k move, x chooses, Enter opens.
import { signal } from '@preact/signals';
import { Component } from 'preact';
import { useCallback, useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, query } from '../api.js';
import { changedAt, show, table } from '../stream.js';
import { kinds, may, noticeOf, project, route, setQuery, toObject } from '../state.js';
import { ActionButtons } from './actions.js';
import { layOut, useFit } from './columns.js';
import { NODE_CELLS, NodeCell } from './nodes.js';
import { Age, Empty, Name, State } from './parts.js';

const NONE = [];
const ROW = 32; // pixels, as in the style
const PAGE = 200; // rows of one request
const STEP = 16; // rows that enter and leave the document together
const TERMINALS = new Set(['vm', 'container']); // kinds whose rows lead to one
const KEPT = 512; // rows whose elements are told apart: those that leave it come back as others
const chosen = signal(new Map()); // uid → row

// What the URL asks for, as the server takes it.
const wanted = (names, words) => ({
  kinds: names.join(','), project: project.value, filter: words.filter ?? '', where: words.phase ?? '', sort: words.sort ?? '',
  ended: words.ended === '1',
});

export function Table({ names, extra, empty, command, group }) {
  const words = route.value.query;
  const parameters = wanted(names, words);
  const key = JSON.stringify(parameters);
  const [offset, setOffset] = useState(0);
  const [older, setOlder] = useState({ key, rows: new Map() }); // rows beyond the page that the stream sends, by their place
  const box = useRef(null);
  const [view, setView] = useState({ first: 0, count: 4 * STEP });
  const settle = useRef(0);

  useEffect(() => { setOffset(0); setOlder({ key, rows: new Map() }); if (box.current) box.current.scrollTop = 0; }, [key]);
  useEffect(() => { show({ table: { ...parameters, offset, limit: PAGE }, ...extra }); }, [key, offset, JSON.stringify(extra)]);
  useEffect(() => () => { chosen.value = new Map(); }, []);

  const fits = table.value;
  const total = fits?.total ?? 0;
  const rows = useMemo(() => {
    const all = new Map(older.key === key ? older.rows : []);
    (fits?.rows ?? []).forEach((row, place) => all.set((fits.offset ?? 0) + place, row));
    return all;
  }, [fits, older, key]);

  const onScroll = () => {
    // In steps, so that most frames of a scroll change nothing in the document.
    const first = Math.max(0, (Math.floor(box.current.scrollTop / ROW / STEP) - 1) * STEP);
    const count = (Math.ceil(box.current.clientHeight / ROW / STEP) + 3) * STEP;
    if (first !== view.first || count !== view.count) setView({ first, count });
    clearTimeout(settle.current);
    settle.current = setTimeout(async () => {
      const start = Math.max(0, Math.floor((first - 40) / 100) * 100);
      if (start === offset || total <= PAGE) return;
      if ([...Array(count).keys()].some((place) => first + place < total && !rows.has(first + place))) {
        try {
          const page = await get(`/v1/dashboard/table?${query({ ...parameters, offset: start, limit: PAGE })}`);
          setOlder((before) => {
            const kept = new Map(before.key === key ? before.rows : []);
            page.rows.forEach((row, place) => kept.set(start + place, row));
            return { key, rows: kept };
          });
        } catch (error) { noticeOf(error); }
      }
      setOffset(start);
    }, 120);
  };

  useKeys(box, rows);
  const laid = layOut(fits?.columns ?? NONE, fits?.rows ?? NONE);
  const [isWhole, setWhole] = useState(false); // all columns, whether or not they fit
  const fit = useFit(box, laid.columns, isWhole);
  const columns = isWhole ? laid.all : fit.columns;
  const last = Math.min(total, view.first + view.count);
  const first = Math.min(view.first, Math.max(0, total - 1));
  const places = [];
  for (let place = first; place < last; place += 1) places.push(place);
  const sortBy = (title) => setQuery({ sort: words.sort === title ? `-${title}` : words.sort === `-${title}` ? '' : title });
  const sorted = (title) => (words.sort === title ? 'ascending' : words.sort === `-${title}` ? 'descending' : undefined);
  const newest = useRef(rows); // rows keep their handler, or each would be drawn again
  newest.current = rows;
  const pick = useCallback((row, place, event) => choose(row, place, event, newest.current), []);
  const everything = places.length > 0 && places.every((place) => rows.has(place) && chosen.value.has(rows.get(place).uid));
  let before = null;
  return html`
    <${Toolbar} names=${names} phases=${fits?.phases ?? {}} total=${total}>
      ${total > 0 && (laid.all.length > columns.length || isWhole) ? html`<button type="button" class="plain" aria-pressed=${isWhole} onClick=${() => setWhole(!isWhole)}>${isWhole ? 'fewer columns' : `${laid.all.length - columns.length} more ${laid.all.length - columns.length === 1 ? 'column' : 'columns'}`}</button>` : ''}<//>
    ${fits && total === 0
      ? html`<${Empty} words=${words.filter || words.phase ? 'Nothing matches this filter.' : empty} command=${words.filter || words.phase ? null : command} />`
      : html`<div class="scroll rows" ref=${box} onScroll=${onScroll} tabindex="0" role="region" aria-label="Table">
      <table aria-rowcount=${total + 1} style=${fit.most && !isWhole ? { '--most': `${fit.most}px` } : undefined}>
        <thead><tr aria-rowindex="1">
          <th><input type="checkbox" aria-label="Choose all rows in view" checked=${everything} onChange=${(event) => chooseAll(places, rows, event.target.checked)} /></th>
          ${columns.map((column) => html`<th key=${column.title} class=${classOf(column)} aria-sort=${sorted(column.title)}>
            <button type="button" onClick=${() => sortBy(column.title)}>${column.title}${sorted(column.title) === 'ascending' ? ' ▲' : sorted(column.title) ? ' ▼' : ''}</button></th>`)}
        </tr></thead>
        <tbody>
          ${first > 0 && html`<tr class="spacer" aria-hidden="true"><td colspan=${columns.length + 1} style=${{ height: `${first * ROW}px` }}></td></tr>`}
          ${places.map((place) => {
            const row = rows.get(place);
            if (!row) return html`<tr key=${place} aria-rowindex=${place + 2}>${[0, ...columns].map((_, cell) => html`<td key=${cell}><span class="skeleton"></span></td>`)}</tr>`;
            const heading = group && group(row, fits.columns) !== before;
            if (group) before = group(row, fits.columns);
            return html`${heading && html`<tr class="group" key=${`g${place}`}><td colspan=${columns.length + 1}>${before || '–'}</td></tr>`}
              <${Row} key=${place % KEPT} row=${row} place=${place} columns=${columns} isChosen=${chosen.value.has(row.uid)} onPick=${pick} />`;
          })}
          ${last < total && html`<tr class="spacer" aria-hidden="true"><td colspan=${columns.length + 1} style=${{ height: `${(total - last) * ROW}px` }}></td></tr>`}
        </tbody>
      </table>
    </div>`}
    ${chosen.value.size > 0 && html`<div class="chosen-bar" role="toolbar" aria-label="Actions on the chosen rows">
      <strong>${chosen.value.size} chosen</strong>
      <${ActionButtons} rows=${[...chosen.value.values()]} />
      <button type="button" class="plain" onClick=${() => { chosen.value = new Map(); }}>Choose none</button>
    </div>`}`;
}

const classOf = (column) => (column.align === 'right' ? 'number' : column.flexible ? 'flexible' : '');

class Row extends Component {
  shouldComponentUpdate(next) {
    return ['row', 'place', 'columns', 'isChosen'].some((name) => next[name] !== this.props[name]);
  }

  render({ row, place, columns, isChosen, onPick }) {
    const blinks = performance.now() - changedAt(row.uid) < 300 ? 'blink' : '';
    return html`<tr class=${isChosen ? 'chosen' : ''} aria-rowindex=${place + 2}>
      <td><input type="checkbox" aria-label=${`Choose ${row.name}`} checked=${isChosen} onClick=${(event) => onPick(row, place, event)} /></td>
      ${columns.map((column) => html`<td key=${column.title} class=${`${classOf(column)} ${blinks}`} title=${column.flexible ? column.textOf(row) : undefined}>${fillCell(column, row, column.textOf(row))}</td>`)}
    </tr>`;
  }
}

// No component, since a scroll makes hundreds of cells a second; only an age is one, and follows the clock.
function fillCell(column, row, text) {
  if (row.kind === 'node' && NODE_CELLS[column.title]) return html`<${NodeCell} name=${row.name} title=${column.title} text=${text} />`;
  if (column.title === 'NAME') return row.health === 'running' && TERMINALS.has(row.kind) && may(`${row.kind}:exec`, row.project)
    ? html`${Name({ row })} <a class="quick" href=${toObject(row, 'exec')} title="Terminal" aria-label=${`Terminal of ${row.name}`}>›_</a>` : Name({ row });
  if (column.title === 'AGE') return html`<${Age} since=${row.created_at} />`;
  if (column.title === 'PHASE' || column.title === 'STATUS') return State({ phase: text, health: row.health });
  if (column.title === 'NODE' && text && text !== '–') return html`<a class="mono" href=${toObject({ kind: 'node', name: text })}>${text}</a>`;
  return text;
}

let anchor = -1; // the row that was chosen last, for Shift
function choose(row, place, event, rows) {
  const next = new Map(chosen.value);
  const on = event.target.checked;
  const [from, to] = event.shiftKey && anchor >= 0 ? [Math.min(anchor, place), Math.max(anchor, place)] : [place, place];
  for (let each = from; each <= to; each += 1) {
    const found = rows.get(each);
    if (found && on) next.set(found.uid, found);
    else if (found) next.delete(found.uid);
  }
  anchor = place;
  chosen.value = next;
}
function chooseAll(places, rows, on) {
  const next = new Map(chosen.value);
  for (const place of places) {
    const row = rows.get(place);
    if (row && on) next.set(row.uid, row);
    else if (row) next.delete(row.uid);
  }
  chosen.value = next;
}

function Toolbar({ names, phases, total, children }) {
  const words = route.value.query;
  const [typed, setTyped] = useState(words.filter ?? '');
  const later = useRef(0);
  useEffect(() => { setTyped(words.filter ?? ''); }, [words.filter]);
  const filter = (text) => {
    setTyped(text);
    clearTimeout(later.current);
    later.current = setTimeout(() => setQuery({ filter: text }), 200);
  };
  const hasEnded = names.some((name) => kinds.value.get(name)?.over);
  return html`<div class="row" role="search" aria-label="Filter of the table">
    <input type="search" aria-label="Filter by words" placeholder="Words in any column or label" class="grow" style=${{ maxWidth: '420px' }} value=${typed} onInput=${(event) => filter(event.target.value)} />
    ${Object.entries(phases).filter(([phase]) => phase).map(([phase, count]) => html`<button key=${phase} type="button" class="chip" aria-pressed=${words.phase === phase}
      onClick=${() => setQuery({ phase: words.phase === phase ? '' : phase })}>${phase} ${count}</button>`)}
    ${words.phase && !(words.phase in phases) && html`<button type="button" class="chip" aria-pressed="true" onClick=${() => setQuery({ phase: '' })}>${words.phase} 0</button>`}
    ${hasEnded && html`<label class="row"><input type="checkbox" checked=${words.ended === '1'} onChange=${(event) => setQuery({ ended: event.target.checked ? '1' : '' })} /> ended ones, too</label>`}
    <span class="soft" aria-live="polite">${total.toLocaleString('en')} in all</span>${children}
  </div>`;
}

// j, k: the next and previous row; x: choose it; Enter follows its link, as everywhere.
function useKeys(box, rows) {
  useEffect(() => {
    const onKey = (event) => {
      if (event.target.closest('input, select, textarea, dialog') || event.ctrlKey || event.metaKey || event.altKey) return;
      if (!'jkx'.includes(event.key) || event.key.length !== 1) return;
      const links = [...(box.current?.querySelectorAll('tbody td a') ?? [])].filter((link) => link.closest('tr').querySelector('td a') === link);
      const at = links.indexOf(document.activeElement);
      if (event.key === 'x') links[at]?.closest('tr').querySelector('input')?.click();
      else links[Math.max(0, Math.min(links.length - 1, at + (event.key === 'j' ? 1 : -1)))]?.focus();
      event.preventDefault();
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, [rows]);
}


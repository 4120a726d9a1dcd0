// Logs of many workloads together: which, lines with what text, since when; merged by time, each with its source. The address says
// all that was chosen.
import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, query } from '../api.js';
import { instant, many, quote } from '../format.js';
import { MOST_LINES, readMerged } from '../merged.js';
import { kinds, may, placesOf, project, route, setQuery, toObject } from '../state.js';
import { returns, show, summary } from '../stream.js';
import { Command, ProblemBox } from '../ui/parts.js';

const NAMES = ['vm', 'container', 'function'];
const MOST = 20; // workloads at once
const OFFERED = 500; // of each kind, to choose by name
const SINCE = { '10m': 600, '1h': 3600, '24h': 86400 }; // seconds
const BY = { name: () => 'by name', label: () => 'by label', all: () => (project.value ? `all of ${project.value}` : 'all of every project') };

export function Logs() {
  const { by = 'name', of = '', label = '', text = '', regex = '', since = '10m', follow = '1' } = route.value.query;
  const how = Object.hasOwn(BY, by) ? by : 'name';
  const period = Object.hasOwn(SINCE, since) ? since : '10m';
  const named = useMemo(() => readNames(of), [of]);
  const [found, setFound] = useState({ rows: [], error: null });
  const [asked, setAsked] = useState(0);
  const changes = how === 'name' ? JSON.stringify(NAMES.map((name) => summary.value?.phases?.[name])) : ''; // whatever comes may be chosen
  useEffect(() => { show({}); }, []);
  useEffect(() => {
    let isOver = false;
    if (how !== 'name') setFound({ rows: [], error: null });
    if (how === 'label' && !label) return undefined;
    list(how === 'label' ? label : '', how === 'name' ? OFFERED : MOST + 1).then((rows) => { if (!isOver) setFound({ rows, error: null }); }, (error) => { if (!isOver) setFound({ rows: [], error }); });
    return () => { isOver = true; };
  }, [how, label, project.value, asked, changes, returns.value]);
  const chosen = how === 'name' ? named : found.rows;
  const rows = chosen.slice(0, MOST);
  const input = { since: SINCE[period], follow: follow === '1', ...(text ? { [regex === '1' ? 'regex' : 'filter']: text } : {}) };
  return html`<h1>Logs</h1>
    <${Choice} how=${how} label=${label} named=${named} offered=${how === 'name' ? found.rows : []} />
    <div class="row"><form class="row" onSubmit=${(event) => { event.preventDefault(); setQuery({ text: new FormData(event.target).get('text') }); }}>
        <input name="text" type="search" maxlength="1000" aria-label="Only lines with" placeholder=${regex === '1' ? 'Regular expression…' : 'Only lines with…'} key=${text} defaultValue=${text} />
        <button type="submit">Filter</button></form>
      <label class="row"><input type="checkbox" checked=${regex === '1'} onChange=${(event) => setQuery({ regex: event.target.checked ? '1' : '' })} /> regular expression</label>
      <label class="row">since <select value=${period} onChange=${(event) => setQuery({ since: event.target.value })}>${Object.keys(SINCE).map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select></label>
      <label class="row"><input type="checkbox" checked=${follow === '1'} onChange=${(event) => setQuery({ follow: event.target.checked ? '1' : '0' })} /> follow</label>
      <button type="button" onClick=${() => setAsked(asked + 1)}>Read again</button></div>
    <${ProblemBox} error=${found.error} />
    ${chosen.length > MOST && html`<p role="alert">At most ${MOST} workloads are shown at once: these are the first ${MOST}. Choose fewer by name or by a narrower label.</p>`}
    <${Lines} key=${JSON.stringify([rows.map(write), input, asked])} rows=${rows} input=${input} onLeave=${how === 'name' ? (row) => setQuery({ of: named.filter((each) => write(each) !== write(row)).map(write).join() }) : null}
      empty=${how === 'label' && label ? 'No workload has this label.' : how === 'all' ? 'No workloads are here yet.' : `Choose up to ${MOST} workloads.`} />
    ${new Set(rows.map((row) => row.project)).size === 1 && html`<${Command} words=${commandOf(how, label, rows, { period, text, regex, follow })} />`}`;
}

function Choice({ how, label, named, offered }) {
  const known = new Set(named.map(write));
  const free = offered.filter((row) => !known.has(write(row))).sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }));
  const isOnly = new Set(offered.map((row) => row.project)).size < 2;
  const add = (event) => {
    event.preventDefault();
    const given = new FormData(event.target).get('name');
    event.target.reset();
    setQuery({ of: [...known, given].join() });
  };
  return html`<div class="row"><select aria-label="Choose workloads" value=${how} onChange=${(event) => setQuery({ by: event.target.value })}>
      ${Object.entries(BY).map(([name, words]) => html`<option key=${name} value=${name}>${words()}</option>`)}</select>
    ${how === 'name' && html`<form class="row" onSubmit=${add}><select name="name" required aria-label="Workload" disabled=${named.length >= MOST}>
        <option value="">${offered.length ? 'choose a workload…' : 'no workloads yet'}</option>
        ${NAMES.map((kind) => [kind, free.filter((row) => row.kind === kind)]).filter(([, rows]) => rows.length).map(([kind, rows]) => html`<optgroup key=${kind} label=${many(kinds.value.get(kind))}>
          ${rows.map((row) => html`<option key=${write(row)} value=${write(row)}>${row.name}${project.value || isOnly ? '' : ` in ${row.project}`}</option>`)}</optgroup>`)}</select>
      <button type="submit" disabled=${named.length >= MOST}>Add</button></form>`}
    ${how === 'label' && html`<form class="row" onSubmit=${(event) => { event.preventDefault(); setQuery({ label: new FormData(event.target).get('label').trim() }); }}>
      <input name="label" aria-label="Label" placeholder="app=shop" key=${label} defaultValue=${label} /><button type="submit">Choose</button></form>`}
    <span class="soft">at most ${MOST} at once</span></div>`;
}

function Lines({ rows, input, empty, onLeave }) {
  const [seen, setSeen] = useState({ lines: [], states: [] });
  const box = useRef(null);
  const atEnd = useRef(true);
  useEffect(() => readMerged(rows, input, setSeen), []); // another choice is another component, by its key
  useEffect(() => { if (atEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight; }, [seen]);
  if (!rows.length) return html`<p class="soft">${empty}</p>`;
  const onScroll = ({ target }) => { atEnd.current = target.scrollTop + target.clientHeight > target.scrollHeight - 40; };
  const title = (row) => (new Set(rows.map((each) => each.project)).size > 1 ? write(row) : `${row.kind}/${row.name}`);
  const isReading = rows.some((row, at) => (seen.states[at]?.words ?? 'reading…') === 'reading…');
  return html`<ul class="sources" aria-label="Sources">${rows.map((row, at) => html`<li key=${write(row)}><a class="mono" style=${{ color: colour(at) }} href=${toObject(row, 'logs')}>${title(row)}</a>
      <span class=${seen.states[at]?.isBad ? 'state failed' : 'soft'}>${seen.states[at]?.words ?? 'reading…'}</span>
      ${onLeave && html`<button type="button" class="plain" aria-label=${`Leave out ${title(row)}`} onClick=${() => onLeave(row)}>✕</button>`}</li>`)}</ul>
    <div class="log merged" ref=${box} onScroll=${onScroll} tabindex="0" role="region" aria-label="Lines">
      ${seen.lines.map((line) => (line.shown ??= html`<div key=${line.number}><time class="soft" title=${line.time}>${instant(line.time)}</time> <span style=${{ color: colour(line.at) }}>${title(rows[line.at])}</span> ${line.message}</div>`))}
      ${!seen.lines.length && html`<p class="soft">${isReading ? 'Reading…' : 'No lines yet.'}</p>`}</div>
    ${seen.lines.length >= MOST_LINES && html`<p class="soft">Only the newest ${MOST_LINES} lines are kept here.</p>`}`;
}

// Of the same lightness each, so that all can be read on the page's ground; neighbours are far apart on the wheel.
const colour = (at) => { const hue = Math.round(30 + at * 137.5) % 360; return `light-dark(oklch(0.42 0.13 ${hue}), oklch(0.82 0.1 ${hue}))`; };

const write = (row) => `${row.kind}/${row.project}/${row.name}`;
const readNames = (words) => [...new Set(words.split(','))].map((each) => each.split('/')).filter((parts) => parts.length === 3 && NAMES.includes(parts[0]) && parts[1] && parts[2])
  .map(([kind, where, name]) => ({ kind, project: where, name }));

// The first of each kind and place that the reader may list, by name.
async function list(labels, most) {
  const asked = NAMES.filter((name) => kinds.value.has(name)).flatMap((name) => placesOf(`${name}:list`).filter((place) => may(`${name}:list`, place)).map((place) => [name, place]));
  const pages = await Promise.all(asked.map(([name, place]) => get(`/v1/${place && `projects/${encodeURIComponent(place)}/`}${kinds.value.get(name).plural}?${query({ limit: most, labels })}`)));
  return pages.flatMap((page) => page.items).map(({ kind, name, project: where }) => ({ kind, name, project: where }));
}

// It takes one project, and functions only by name.
function commandOf(how, label, rows, { period, text, regex, follow }) {
  const named = how === 'name' || rows.some((row) => row.kind === 'function');
  const of = named ? rows.map((row) => `${row.kind}/${row.name}`) : how === 'label' ? ['-l', quote(label)] : [];
  return ['weft logs', ...of, '--aggregate --since', period, ...(text ? [regex === '1' ? '--regex' : '--filter', quote(text)] : []),
    ...(follow === '1' ? ['-f'] : []), ...(rows[0].project === 'default' ? [] : ['-p', rows[0].project])].join(' ');
}

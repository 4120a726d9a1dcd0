// Devices: found ones that wait for people, twins with what is desired of them, the last hour of a property, and rules that fired. Texts
// of devices are a stranger's: shown as text, and cut.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { many } from '../format.js';
import { get, query } from '../api.js';
import { MOST, readAll } from '../read.js';
import { health, kinds, may, now, placesOf, route, setQuery } from '../state.js';
import { summary } from '../stream.js';
import { run } from '../ui/actions.js';
import Chart from '../ui/chart.js';
import { KindChips } from '../ui/chips.js';
import { CreateButton } from '../ui/create.js';
import { Age, Command, Name, ProblemBox, State } from '../ui/parts.js';
import { Table } from '../ui/table.js';

const COMMANDS = { device: 'weft device create fridge-1 --node n1 --model cold-room', devicemodel: 'weft apply -f cold-room.yaml', rule: 'weft apply -f too-warm.yaml', devicerollout: 'weft devicerollout create colder --model cold-room --set setpoint=2' };
const NAMES = ['device', 'devicemodel', 'rule'];
const SHOWN = 50; // rows of a list
const MOST_TEXT = 80; // of a word that a device sent
const MOST_VALUES = 12; // of a device, in a list
const HOUR_SECONDS = 3600;
const STEP_SECONDS = 10; // as the server records
const AGAIN_MS = 15_000;

const cut = (text) => (String(text).length > MOST_TEXT ? `${String(text).slice(0, MOST_TEXT)}…` : String(text));
const keyOf = (row) => `${row.project}/${row.name}`;

export function Devices() {
  const known = Object.keys(COMMANDS).filter((name) => kinds.value.has(name));
  const kind = known.includes(route.value.query.kind) ? route.value.query.kind : 'device';
  return html`<div class="row"><h1 class="grow">Devices</h1><${CreateButton} names=${[kind]} /></div>
    <${Now} />
    <${KindChips} names=${known} chosen=${kind} />
    <${Table} key=${kind} names=${[kind]} empty=${`No ${many(kinds.value.get(kind))} yet.`} command=${COMMANDS[kind]} />`;
}

function Now() {
  const [facts, setFacts] = useState(null);
  const [asked, setAsked] = useState(0);
  const changes = JSON.stringify(NAMES.map((name) => summary.value?.phases?.[name]));
  const places = NAMES.map((name) => placesOf(`${name}:list`).join()).join(';');
  useEffect(() => {
    let isOver = false;
    Promise.all(NAMES.map((each) => readAll(each))).then(([devices, models, rules]) => { if (!isOver) setFacts({ devices, models: models.items, rules: rules.items }); });
    return () => { isOver = true; };
  }, [places, changes, asked, Math.floor(now.value / 10)]);
  if (!facts) return html`<p class="soft">Reading devices…</p>`;
  const devices = facts.devices.items;
  const twins = devices.filter((each) => each.status?.phase !== 'Found').sort((a, b) => (b.status?.drift?.length ?? 0) - (a.status?.drift?.length ?? 0) || keyOf(a).localeCompare(keyOf(b)));
  return html`<${Found} devices=${devices.filter((each) => each.status?.phase === 'Found')} models=${facts.models} onChange=${() => setAsked(asked + 1)} />
    <${Twins} devices=${twins} isCut=${facts.devices.isCut} />
    <${LastHour} devices=${twins} models=${facts.models} />
    <${Fired} rules=${facts.rules} />`;
}

function Found({ devices, models, onChange }) {
  if (!devices.length) return null;
  return html`<section class="panel"><h2>Found, and not used yet (${devices.length})</h2>
    <div class="scroll whole" tabindex="0" role="region" aria-label="Found devices"><table>
      <thead><tr><th>DEVICE</th><th>PROJECT</th><th>NODE</th><th>PROTOCOL</th><th>ADDRESS</th><th>SAYS OF ITSELF</th><th>APPROVE</th></tr></thead>
      <tbody>${devices.slice(0, SHOWN).map((each) => html`<tr key=${each.uid}><td><${Name} row=${each} /></td><td>${each.project}</td><td>${each.spec.node}</td><td>${each.spec.protocol}</td>
        <td class="mono">${cut(each.spec.address)}</td><td class="mono">${cut(Object.entries(each.status?.found ?? {}).map(([word, text]) => `${word}=${text}`).join(' '))}</td>
        <td><${Approving} device=${each} models=${models.filter((model) => model.project === each.project)} onChange=${onChange} /></td></tr>`)}</tbody></table></div>
    ${devices.length > SHOWN && html`<p class="soft">and ${devices.length - SHOWN} more</p>`}</section>`;
}

function Approving({ device, models, onChange }) {
  const [model, setModel] = useState('');
  const [busy, setBusy] = useState(false);
  const action = kinds.value.get('device').actions?.find((each) => each.name === 'approve');
  const lacks = action && !may(action.needs, device.project) ? action.needs : '';
  const approve = async () => {
    setBusy(true);
    await run(action, device, { model });
    setBusy(false);
    onChange();
  };
  if (!action) return null;
  return html`<select aria-label=${`Model of ${device.name}`} value=${model} onChange=${(event) => setModel(event.target.value)}><option value="">model…</option>
      ${models.slice(0, MOST).map((each) => html`<option key=${each.uid} value=${each.name}>${each.name}</option>`)}</select>
    <button type="button" disabled=${busy || !model || Boolean(lacks)} title=${lacks ? `you lack the permission ${lacks}` : model ? `weft device approve ${device.name} --model ${model}` : 'choose its model first'}
      onClick=${approve}>Approve</button>`;
}

const shown = (value) => cut(typeof value === 'string' ? value : JSON.stringify(value) ?? '–');

function Twins({ devices, isCut }) {
  if (!devices.length) return null;
  const drifting = devices.filter((each) => each.status?.drift?.length);
  return html`<section class="panel"><h2>Twins</h2>
    <p class=${`state ${drifting.length ? 'degraded' : 'running'}`}>${drifting.length ? `${drifting.length} ${drifting.length === 1 ? 'device isn’t' : 'devices aren’t'} as desired.` : 'Every device is as desired.'}
      ${isCut && html`<span class="soft"> The first ${MOST} of each project are shown.</span>`}</p>
    <div class="scroll whole" tabindex="0" role="region" aria-label="Twins"><table>
      <thead><tr><th>DEVICE</th><th>PHASE</th><th>PROJECT</th><th>SEEN</th><th>REPORTED</th><th>DRIFT</th><th>NOTE</th></tr></thead>
      <tbody>${devices.slice(0, SHOWN).map((each) => { const { phase = 'Offline', last_seen: seen, reported = {}, drift = [], problem = '' } = each.status ?? {}; return html`<tr key=${each.uid}>
        <td><${Name} row=${each} /></td><td><${State} phase=${phase} health=${health.value[phase]} /></td><td>${each.project}</td><td>${seen ? html`<${Age} since=${seen} /> ago` : 'never'}</td>
        <td class="mono" style=${{ maxWidth: 'none' }}>${Object.entries(reported).slice(0, MOST_VALUES).map(([name, value]) => `${name}=${shown(value)}`).join(' ')}${Object.keys(reported).length > MOST_VALUES ? ' …' : ''}</td>
        <td class="mono" style=${{ maxWidth: 'none' }}>${drift.slice(0, MOST_VALUES).map((name) => `${name}: ${shown(reported[name])} → ${shown(each.spec.desired?.[name])}`).join(', ') || '–'}</td>
        <td style=${{ maxWidth: 'none' }}>${problem.slice(0, 4 * MOST_TEXT)}</td></tr>`; })}</tbody></table></div>
    ${devices.length > SHOWN && html`<p class="soft">and ${devices.length - SHOWN} more; the table below has all</p>`}</section>`;
}

// The device and the property are in the URL, so a plot can be sent to somebody.
function LastHour({ devices, models }) {
  const { device: chosen = '', property: asked = '' } = route.value.query;
  const numbersOf = (device) => Object.entries(models.find((each) => each.project === device.project && each.name === device.spec.model)?.spec.properties ?? {})
    .filter(([, property]) => property.type === 'number' || property.type === 'integer');
  const plotted = devices.filter((each) => numbersOf(each).length);
  const device = plotted.find((each) => keyOf(each) === chosen) ?? plotted[0];
  const numbers = device ? numbersOf(device) : [];
  const [property, declared] = numbers.find(([name]) => name === asked) ?? numbers[0] ?? [];
  const [found, setFound] = useState({ points: null, error: null });
  const lacks = device && !may('metric:list', device.project);
  const key = device && property && !lacks ? `${keyOf(device)}/${property}` : '';
  useEffect(() => {
    if (!key) return undefined;
    let isOver = false;
    let timer = 0;
    setFound({ points: null, error: null });
    const read = async () => {
      const answer = await readHour(device, property).then((points) => ({ points, error: null }), (error) => ({ points: null, error }));
      if (isOver) return;
      setFound(answer);
      timer = setTimeout(read, AGAIN_MS);
    };
    read();
    return () => { isOver = true; clearTimeout(timer); };
  }, [key]);
  if (!device) return null;
  const isEmpty = found.points && !found.points.length;
  return html`<section class="panel"><div class="row"><h2 class="grow">The last hour</h2>
      <label>Device <select value=${keyOf(device)} onChange=${(event) => setQuery({ device: event.target.value, property: '' })}>${plotted.slice(0, MOST).map((each) => html`<option key=${each.uid} value=${keyOf(each)}>${each.name}</option>`)}</select></label>
      <label>Property <select value=${property} onChange=${(event) => setQuery({ device: keyOf(device), property: event.target.value })}>${numbers.map(([name]) => html`<option key=${name} value=${name}>${name}</option>`)}</select></label></div>
    ${lacks && html`<p role="alert">You lack the permission <code>metric:list</code>.</p>`}
    <${ProblemBox} error=${found.error} />
    ${!lacks && !found.error && !found.points && html`<p class="soft">Reading the last hour…</p>`}
    ${isEmpty && html`<p class="soft">Nothing was recorded in the last hour: the device wasn’t online.</p>`}
    ${found.points?.length > 0 && html`<${Chart} title=${`${device.name} ${property}`} series=${[{ name: property, unit: (declared.unit ?? '').slice(0, 32), points: found.points }]} />`}
    <${Command} words=${`weft device metrics ${device.name}${device.project !== 'default' ? ` -p ${device.project}` : ''} --property ${property} --plot`} /></section>`;
}

// [seconds, value], null where nothing is known. Names of objects are DNS labels, and those of properties words: no quote is in them.
async function readHour(device, property) {
  const end = Math.floor(Date.now() / 1000 / STEP_SECONDS) * STEP_SECONDS;
  const asked = `weft_device_property{project='${device.project}',device='${device.name}',property='${property}'}`;
  const answer = await get(`/api/v1/query_range?${query({ query: asked, start: end - HOUR_SECONDS, end, step: STEP_SECONDS })}`);
  const known = new Map((answer.data?.result?.[0]?.values ?? []).map(([at, value]) => [Math.round(at / STEP_SECONDS) * STEP_SECONDS, Number(value)]));
  if (!known.size) return [];
  return Array.from({ length: HOUR_SECONDS / STEP_SECONDS + 1 }, (_, index) => end - HOUR_SECONDS + index * STEP_SECONDS).map((at) => [at, known.get(at) ?? null]);
}

function Fired({ rules }) {
  const rows = rules.filter((each) => each.status?.fired || each.status?.problem).sort((a, b) => (b.status.last_fired ?? 0) - (a.status.last_fired ?? 0));
  if (!rows.length) return null;
  return html`<section class="panel"><h2>Rules that fired</h2>
    <div class="scroll whole" tabindex="0" role="region" aria-label="Rules that fired"><table><thead><tr><th>RULE</th><th>PROJECT</th><th>WHEN</th><th class="number">FIRED</th><th>LAST</th><th>PROBLEM</th></tr></thead>
      <tbody>${rows.slice(0, SHOWN).map((each) => html`<tr key=${each.uid}><td><${Name} row=${each} /></td><td>${each.project}</td><td class="mono" style=${{ maxWidth: 'none' }}>${cut(each.spec.when)}</td>
        <td class="number">${each.status.fired}</td><td>${each.status.last_fired ? html`<${Age} since=${each.status.last_fired} /> ago` : 'never'}</td>
        <td style=${{ maxWidth: 'none' }}>${(each.status.problem ?? '').slice(0, 4 * MOST_TEXT) || '–'}</td></tr>`)}</tbody></table></div>
    ${rows.length > SHOWN && html`<p class="soft">and ${rows.length - SHOWN} more</p>`}</section>`;
}

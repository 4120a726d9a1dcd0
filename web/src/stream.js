// The one stream of events of this tab: it says what the page shows, and the newest state of that comes back, folded per object.
// Pages call `show`; a stream that is lost is opened again, and what was shown stays with its age.
import { effect, signal } from '@preact/signals';
import { get } from './api.js';
import { project, session } from './state.js';

export const table = signal(null); // {columns, rows, total, phases, offset}
export const summary = signal(null);
export const object = signal(undefined); // undefined: not there yet; null: deleted
export const events = signal([]);
export const lostAt = signal(0); // seconds since 1970 when the stream was lost; 0: it is there
export const refused = signal(''); // why the server doesn't open the stream
export const restarted = signal(false); // the server runs another release than the page was loaded from

const shown = signal({}); // what the page asks for beside the summary
let source = null;
let asked = '';
let version = '';
let again = 0;
const pathOf = (what) => `/v1/dashboard/stream?show=${encodeURIComponent(what)}`;
let blinking = new Map(); // uid → when its row changed, milliseconds

export const changedAt = (uid) => blinking.get(uid) ?? 0;

// What the page that is open shows. Parts that aren't named are dropped.
export function show(what) {
  const given = JSON.stringify(what);
  if (given !== JSON.stringify(shown.peek())) {
    const before = shown.peek();
    if (JSON.stringify(before.object) !== JSON.stringify(what.object)) { object.value = undefined; }
    if (JSON.stringify(before.events) !== JSON.stringify(what.events)) events.value = [];
    shown.value = what;
  }
}

effect(() => {
  if (!session.value) { close(); return; }
  const what = JSON.stringify({ ...shown.value, summary: { project: project.value } });
  if (what !== asked || !source) open(what);
});

function close() {
  clearTimeout(again);
  source?.close();
  source = null;
  asked = '';
}

function open(what) {
  close();
  asked = what;
  const opened = (source = new EventSource(pathOf(what)));
  const on = (name, take) => opened.addEventListener(name, (event) => {
    if (source !== opened) return;
    lostAt.value = 0;
    refused.value = '';
    take(JSON.parse(event.data));
  });
  on('hello', (hello) => {
    if (version && version !== hello.version) restarted.value = true;
    version = hello.version;
  });
  on('summary', (given) => { summary.value = given; });
  on('object', (given) => { object.value = given; });
  on('events', (given) => { events.value = merge(events.value, given); });
  on('table', takeTable);
  opened.onerror = () => {
    if (source !== opened) return;
    if (!lostAt.value) lostAt.value = Date.now() / 1000;
    if (opened.readyState === EventSource.CLOSED) { // refused: the browser doesn't say why, so it is asked for once more
      source = null;
      again = setTimeout(() => explain(what).finally(() => { if (session.value && !source) open(what); }), 1500);
    }
  };
}

async function explain(what) {
  const leave = new AbortController();
  try {
    const answer = await fetch(pathOf(what), { signal: leave.signal, cache: 'no-store' });
    refused.value = answer.ok ? '' : (await answer.json()).message ?? '';
    if (answer.status === 401) await get('/v1/whoami');
  } catch { refused.value = ''; } finally { leave.abort(); }
}

function takeTable(given) {
  const before = table.value;
  const rows = new Map(given.columns ? [] : (before?.rows ?? []).map((row) => [row.uid, row]));
  const at = performance.now();
  for (const row of given.rows ?? []) {
    if (rows.has(row.uid) && rows.get(row.uid).revision !== row.revision) blinking.set(row.uid, at);
    rows.set(row.uid, row);
  }
  if (blinking.size > 2000) blinking = new Map();
  for (const uid of given.gone ?? []) rows.delete(uid);
  const order = given.order ?? [...rows.keys()];
  table.value = {
    ...before, ...given,
    columns: given.columns ?? before?.columns ?? [],
    rows: order.map((uid) => rows.get(uid)).filter(Boolean),
    offset: shown.peek().table?.offset ?? 0,
  };
}

function merge(old, fresh) {
  const known = new Map(old.map((event) => [event.id, event]));
  for (const event of fresh) known.set(event.id, event);
  return [...known.values()].sort((a, b) => a.id - b.id).slice(-500);
}

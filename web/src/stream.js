// The one stream of events of this tab while it is seen: it says what the page shows, and the newest state of that comes back, folded per object.
// Pages call `show`; a stream that is lost is opened again, and what was shown stays with its age. A window that has no place for a stream
// opens it for a moment every few seconds.
import { computed, effect, signal } from '@preact/signals';
import { get, pageHeaders } from './api.js';
import { hasPlace, leavePlace, takePlace } from './places.js';
import { project, session } from './state.js';

export const table = signal(null); // {columns, rows, total, phases, offset}
export const summary = signal(null);
export const object = signal(undefined); // undefined: not there yet; null: deleted
export const events = signal([]);
// Of the object that is shown: one that had its name before has a uid of its own. Of one that is gone, all of its name.
export const ownEvents = computed(() => (object.value ? events.value.filter((event) => event.object.uid === object.value.uid) : events.value));
export const lostAt = signal(0); // seconds since 1970 when the stream was lost; 0: it is there
export const refused = signal(''); // why the server doesn't open the stream
export const returns = signal(0); // how often the server came back, or this tab was shown again: what was read before is read again
export const isInTurns = signal(false); // other windows have the places
export const restarted = signal(false); // the server runs another release than the page was loaded from

const shown = signal({}); // what the page asks for beside the summary
const isHidden = signal(document.hidden);
document.addEventListener('visibilitychange', () => { isHidden.value = document.hidden; });
let source = null;
let asked = '';
let version = '';
let again = 0;
let quiet = 0;
let isAway = false; // since then nothing has come
let hiddenAt = 0; // seconds since 1970
export const TURN = 5000; // milliseconds between two moments of a window without a place
const QUIET = 25_000; // milliseconds: the server says something every 8 s, so by then nobody is at the other end
const pathOf = (what) => `/v1/dashboard/stream?show=${encodeURIComponent(what)}`;
let blinking = new Map(); // uid → when its row changed, milliseconds

export const changedAt = (uid) => blinking.get(uid) ?? 0;

// The object that `what` names, as `object`: what the page before showed is another.
export const objectOf = (what) => (JSON.stringify(shown.value.object) === JSON.stringify(what) ? object.value : undefined);

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
  if (!session.value || isHidden.value) { // nobody sees this tab: its place is for others
    if (asked) { isAway = true; hiddenAt = Date.now() / 1000; }
    close();
    leavePlace();
    return;
  }
  takePlace();
  if (hasPlace.value) isInTurns.value = false;
  const what = JSON.stringify({ ...shown.value, summary: { project: project.value } });
  if (what !== asked || !source) open(what);
});

function close() {
  clearTimeout(again);
  clearTimeout(quiet);
  source?.abort();
  source = null;
  asked = '';
}

// A connection can be dead without a word: after a laptop slept, or where a server hangs.
function hear(opened) {
  clearTimeout(quiet);
  quiet = setTimeout(() => opened.abort(), QUIET);
}

const TAKERS = {
  hello: (hello) => {
    if (version && version !== hello.version) restarted.value = true;
    version = hello.version;
  },
  summary: (given) => { summary.value = given; },
  object: (given) => { object.value = given; },
  events: (given) => { events.value = merge(events.value, given); },
  table: takeTable,
};

// By fetch and not EventSource, which sends no header and doesn't say why it was refused.
async function open(what) {
  close();
  asked = what;
  const opened = (source = new AbortController());
  let wait = 500; // milliseconds
  hear(opened);
  try {
    const answer = await fetch(pathOf(what), { signal: opened.signal, headers: pageHeaders(), cache: 'no-store' });
    if (!answer.ok) {
      refused.value = answer.status < 500 ? (await answer.json()).message ?? `the server answered ${answer.status}` : '';
      if (answer.status === 401) await get('/v1/whoami');
      wait = 2000;
    } else if (await read(answer.body, opened, new Set(Object.keys(JSON.parse(what))))) {
      opened.abort();
      wait = TURN;
    }
  } catch { wait = 1500; }
  if (source !== opened) return;
  if (wait === TURN) isInTurns.value = true;
  else {
    isAway = true;
    if (!lostAt.value) lostAt.value = hiddenAt || Date.now() / 1000;
  }
  source = null;
  again = setTimeout(() => { if (session.value && !source) open(what); }, wait);
}

// Server-sent events (HTML standard, 9.2), as far as the server uses them: a name and one line of data. True as soon as all that is `missing`
// has come, where this window has no place to hold the stream.
async function read(body, opened, missing) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done || source !== opened) return false;
    hear(opened);
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split('\n');
      const name = lines.find((line) => line.startsWith('event: '))?.slice(7);
      const data = lines.find((line) => line.startsWith('data: '))?.slice(6);
      if (!name || data === undefined) continue;
      lostAt.value = 0;
      hiddenAt = 0;
      if (isAway) { isAway = false; returns.value += 1; }
      refused.value = '';
      TAKERS[name]?.(JSON.parse(data));
      missing.delete(name);
    }
    if (!missing.size && !hasPlace.peek()) return true;
  }
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

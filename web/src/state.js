// What the page knows, as signals. Server state comes by stream.js and is never changed here; the URL's fragment says what is shown.
import { computed, effect, signal } from '@preact/signals';
import { get, keepPageKey, Problem, request, whenSignedOut } from './api.js';

export const session = signal(undefined); // undefined: not asked yet; null: signed out; else /v1/whoami
export const kinds = signal(new Map()); // by name
export const health = signal({}); // how an object is, by its phase
export const gateway = signal({ streams: '', server_name: '' });
export const now = signal(Date.now() / 1000);
export const notices = signal([]); // {id, words, hint, bad, command}
export const dialog = signal(null); // a component, or null

// --- where people are -----------------------------------------------------------------------------------------------

function decode(part) {
  try { return decodeURIComponent(part); } catch { return part; } // somebody else's address, or a cut one
}
function read(hash) {
  const [path, words = ''] = hash.replace(/^#\/?/, '').split('?');
  return { path: path.split('/').filter(Boolean).map(decode), query: Object.fromEntries(new URLSearchParams(words)) };
}
export const route = signal(read(location.hash));
addEventListener('hashchange', () => { route.value = read(location.hash); });

export function link(path, query = {}) {
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== '' && value != null)).toString();
  return `#/${path.map(encodeURIComponent).join('/')}${words ? `?${words}` : ''}`;
}
export function go(path, query, replace = false) {
  const to = link(path, query);
  if (replace) { history.replaceState(null, '', to); route.value = read(to); } else location.hash = to;
}
export const setQuery = (change, replace = true) => go(route.value.path, { ...route.value.query, ...change }, replace);
export const toObject = (row, tab) => link(['o', row.kind, row.project || '-', row.name, ...(tab ? [tab] : [])]);

// --- what people chose; no secret is ever kept here -------------------------------------------------------------------

function kept(name, first) {
  const found = signal(localStorage.getItem(`weft-${name}`) ?? first);
  effect(() => localStorage.setItem(`weft-${name}`, found.value));
  return found;
}
export const project = kept('project', ''); // '': all projects
export const theme = kept('theme', 'auto');
effect(() => { document.documentElement.dataset.theme = theme.value; });
if (route.value.query.project !== undefined) project.value = route.value.query.project; // of the link that opened the page
setInterval(() => { now.value = Date.now() / 1000; }, 1000);

// --- rights ---------------------------------------------------------------------------------------------------------

const everywhere = computed(() => new Set(session.value?.permissions?.everywhere ?? []));
export function may(permission, where) {
  if (everywhere.value.has(permission)) return true;
  return Boolean(where && where !== '-' && session.value?.permissions?.projects?.[where]?.includes(permission));
}
// Where to ask for what the page shows: the chosen project, or all ('') if that is allowed, or each in which it is.
export function placesOf(permission) {
  if (project.value) return [project.value];
  if (may(permission, '')) return [''];
  return Object.keys(session.value?.permissions?.projects ?? {}).filter((where) => may(permission, where));
}

// --- signing in and out -----------------------------------------------------------------------------------------------

export async function begin() {
  try {
    const [who, known, door] = await Promise.all([get('/v1/whoami'), get('/v1/kinds?short=1'), get('/v1/gateway').catch(() => ({}))]);
    kinds.value = new Map(known.items.map((kind) => [kind.name, kind]));
    health.value = known.health;
    gateway.value = door;
    session.value = who;
  } catch (error) {
    if (error instanceof Problem && (error.status === 0 || error.status >= 500)) setTimeout(begin, 1500);
    else session.value = null;
  }
}
whenSignedOut(() => { session.value = null; });

export async function signOut() {
  await request('DELETE', '/v1/session').catch(() => {});
  keepPageKey('');
  session.value = null;
}

// --- notices --------------------------------------------------------------------------------------------------------

let numbered = 0;
export function notice(words, more = {}) {
  const id = (numbered += 1);
  notices.value = [...notices.value.slice(-3), { id, words, ...more }];
  setTimeout(() => { notices.value = notices.value.filter((each) => each.id !== id); }, more.bad ? 15000 : 6000);
}
export const noticeOf = (error) => notice(error.message, { bad: true, hint: error.hint });

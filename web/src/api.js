// Requests to the API server, with the session's cookie. Every refusal is a Problem: what went wrong, and what to do about it.

export class Problem extends Error {
  constructor(status, body) {
    super(body.message ?? `the server answered ${status}`);
    this.status = status;
    this.reason = body.reason ?? '';
    this.field = body.field ?? '';
    this.hint = body.hint ?? '';
    this.request = body.request_id ?? '';
  }
}

let onSignedOut = () => {};
export function whenSignedOut(callback) { onSignedOut = callback; }

// A session's cookie goes to every port of the server's host; this goes with own pages only, which alone can read it.
const PAGE_KEY = 'weft-page-key';
export const keepPageKey = (key) => (key ? localStorage.setItem(PAGE_KEY, key) : localStorage.removeItem(PAGE_KEY));
export const pageHeaders = () => ({ 'X-Weft-CSRF': localStorage.getItem(PAGE_KEY) ?? '1' });

export async function request(method, path, body, headers = {}) {
  const init = { method, headers: { ...pageHeaders(), ...headers }, credentials: 'same-origin', cache: 'no-store' };
  if (body !== undefined) {
    init.headers['Content-Type'] ??= 'application/json';
    init.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, init);
  } catch {
    throw new Problem(0, { message: 'the server can’t be reached', hint: 'the page tries again by itself', reason: 'unreachable' });
  }
  const text = await answer.text();
  let given = {};
  try { given = text ? JSON.parse(text) : {}; } catch { given = { message: text.slice(0, 300) }; }
  if (answer.ok) return given;
  if (answer.status === 401 && path !== '/v1/session') onSignedOut();
  throw new Problem(answer.status, given);
}

export const get = (path) => request('GET', path);
export const post = (path, body) => request('POST', path, body ?? {});

// The path of a kind's objects, of one of them, and of a verb on it.
export function pathOf(kind, project, name, verb) {
  const where = kind.scope === 'project' ? `/v1/projects/${encodeURIComponent(project)}/` : '/v1/';
  return where + kind.plural + (name ? `/${encodeURIComponent(name)}` : '') + (verb ? `:${verb}` : '');
}

export const query = (given) => {
  const words = new URLSearchParams();
  for (const [key, value] of Object.entries(given)) {
    if (value !== undefined && value !== null && value !== '' && value !== false) words.set(key, value === true ? '1' : value);
  }
  return words.toString();
};

// A question to the scheduler: an object with the question, which is deleted once its status has the answer.
export async function ask(kind, project, spec) {
  const name = `asked-${crypto.randomUUID().slice(0, 8)}`;
  await post(pathOf(kind, project), { kind: kind.name, name, spec });
  const path = pathOf(kind, project, name);
  try {
    for (let tries = 0; tries < 150; tries += 1) {
      const { status } = await get(path);
      if (status.phase === 'Failed') throw new Problem(409, { message: status.message, reason: status.reason });
      if (status.phase && status.phase !== 'Pending') return status;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    throw new Problem(504, { message: 'no scheduler answered within 30 s', hint: 'weft doctor shows whether one runs' });
  } finally {
    request('DELETE', path).catch(() => {});
  }
}

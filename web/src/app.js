// The frame: who is signed in, which page is open, the list on the left, and what lies above the page.
import { render } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { html } from './html.js';
import { get } from './api.js';
import { age } from './format.js';
import { begin, link, notices, now, project, route, session, signOut, theme } from './state.js';
import { isInTurns, lostAt, refused, restarted, returns, summary, TURN } from './stream.js';
import { Dialog } from './ui/dialog.js';
import { lazy } from './ui/lazy.js';
import { Search } from './ui/search.js';
import { Overview } from './pages/overview.js';

// Each page but the first one is loaded when it is opened.
const page = (load, name) => lazy(() => load().then((part) => part[name]));
const Alerts = page(() => import('./pages/alerts.js'), 'Alerts');
const Audit = page(() => import('./pages/audit.js'), 'Audit');
const Backups = page(() => import('./pages/backups.js'), 'Backups');
const Devices = page(() => import('./pages/devices.js'), 'Devices');
const Kind = page(() => import('./pages/kind.js'), 'Kind');
const Kinds = page(() => import('./pages/kind.js'), 'Kinds');
const Login = page(() => import('./pages/login.js'), 'Login');
const Logs = page(() => import('./pages/logs.js'), 'Logs');
const NetworkMap = page(() => import('./pages/map.js'), 'NetworkMap');
const Networks = page(() => import('./pages/networks.js'), 'Networks');
const Nodes = page(() => import('./pages/nodes.js'), 'Nodes');
const ObjectPage = page(() => import('./pages/object.js'), 'ObjectPage');
const Operations = page(() => import('./pages/operations.js'), 'Operations');
const People = page(() => import('./pages/people.js'), 'People');
const Queue = page(() => import('./pages/queue.js'), 'Queue');
const Rebalancing = page(() => import('./pages/rebalance.js'), 'Rebalancing');
const Storage = page(() => import('./pages/storage.js'), 'Storage');
const Traces = page(() => import('./pages/traces.js'), 'Traces');
const Workloads = page(() => import('./pages/workloads.js'), 'Workloads');
// As the list on the left has them, in its groups.
const GROUPS = {
  '': { '': ['Overview', Overview], workloads: ['Workloads', Workloads], operations: ['Operations', Operations], queue: ['Queue and calendar', Queue], rebalance: ['Rebalancing', Rebalancing] },
  Infrastructure: { nodes: ['Nodes', Nodes], networks: ['Networks', Networks], map: ['Network map', NetworkMap], storage: ['Storage', Storage], backups: ['Backups', Backups], devices: ['Devices', Devices] },
  'What happens': { alerts: ['Alerts', Alerts], logs: ['Logs', Logs], traces: ['Traces', Traces], audit: ['Audit', Audit] },
  Administration: { people: ['People and usage', People], kinds: ['All kinds', Kinds] },
};
const PAGES = Object.assign({}, ...Object.values(GROUPS));
const HIDDEN = { o: ObjectPage, k: Kind };

function App() {
  if (session.value === undefined) return html`<main class="gate" aria-busy="true"><p class="soft">Loading…</p></main>`;
  if (session.value === null) return html`<${Login} />`;
  return html`<${Frame} />`;
}

function Frame() {
  const [isOpen, setOpen] = useState(false);
  const first = route.value.path[0] ?? '';
  const Page = HIDDEN[first] ?? PAGES[first]?.[1] ?? Missing;
  const title = PAGES[first]?.[0] ?? route.value.path.slice(1).filter((part) => part !== '-').join(' ');
  useEffect(() => { setOpen(false); document.title = `${title} · weft`; }, [route.value, title]);
  const onKey = (event) => { if (event.key === 'Escape') setOpen(false); };
  return html`
    <div class="frame" onKeyDown=${onKey}>
      <header class="top">
        <button type="button" class="menu plain" aria-label="Pages" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>☰</button>
        <a class="brand" href="#/">weft</a>
        <${Projects} />
        <${Search} />
        <span class="grow wide"></span>
        <select class="wide" aria-label="Colours" value=${theme.value} onChange=${(event) => { theme.value = event.target.value; }}>
          <option value="auto">as the system</option><option value="light">light</option><option value="dark">dark</option></select>
        <span class="soft wide mono">${session.value.name}</span>
        <button type="button" onClick=${signOut}>Sign out</button>
      </header>
      <nav class=${`side ${isOpen ? 'open' : ''}`} aria-label="Pages">
        ${Object.entries(GROUPS).map(([group, pages]) => html`${group && html`<h2 key=${group}>${group}</h2>`}${Object.entries(pages).map(([name, [words]]) => html`
          <a key=${name} href=${link(name ? [name] : [])} aria-current=${name === first ? 'page' : undefined}><span>${words}</span><${Count} name=${name} /></a>`)}`)}
      </nav>
      <main class="main" id="main" onClick=${() => setOpen(false)}>
        <${Lost} />
        <${Page} key=${HIDDEN[first] ? route.value.path.slice(0, 4).join('/') : first} />
      </main>
    </div>
    <${Dialog} /><${Notices} />`;
}

function Projects() {
  const held = session.value.permissions?.projects ?? {};
  const [found, setFound] = useState([]);
  useEffect(() => {
    get('/v1/projects?limit=500').then((page) => setFound(page.items.map((item) => item.name)), () => {});
  }, [session.value, returns.value]);
  const names = [...new Set([...found, ...Object.keys(held), ...(project.value ? [project.value] : [])])].sort();
  return html`<select aria-label="Project" value=${project.value} onChange=${(event) => { project.value = event.target.value; }}>
    <option value="">all projects</option>${names.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select>`;
}

function Count({ name }) {
  const facts = summary.value;
  if (!facts) return null;
  const problems = facts.problems_total ?? facts.problems?.length ?? 0;
  const firing = facts.phases?.alertrule?.firing;
  const count = { '': problems, alerts: firing, operations: facts.operations?.length, queue: facts.queue?.waiting }[name];
  if (!count) return null;
  const title = { '': 'problems', alerts: 'rules firing' }[name];
  return html`<span class=${`count ${title ? 'state failed' : 'soft'}`} title=${title}>${count}</span>`;
}

function Lost() {
  if (restarted.value) return html`<div class="lost" role="status">The server runs another release now. <a href="" style=${{ color: 'inherit', textDecoration: 'underline' }}>Load the page again</a></div>`;
  if (refused.value) return html`<div class="lost" role="status">The server refuses to follow this page: ${refused.value}. What you see may be old.</div>`;
  if (!lostAt.value && isInTurns.value) return html`<p class="soft" role="status">Updated every ${TURN / 1000} s: other windows use the live connections.</p>`;
  if (!lostAt.value || now.value - lostAt.value < 2) return null;
  return html`<div class="lost" role="status">No connection to the server: what you see is ${age(now.value - lostAt.value)} old. The page tries again by itself.</div>`;
}

const Notices = () => html`<div class="notices" role="status" aria-live="polite">${notices.value.map((each) => html`
  <div key=${each.id} class=${`notice ${each.bad ? 'bad' : ''}`}><div>${each.words}</div>${each.hint && html`<div class="soft">${each.hint}</div>`}</div>`)}</div>`;

const Missing = () => html`<h1>There is no such page</h1><p><a href="#/">Go to the overview</a></p>`;

begin();
render(html`<${App} />`, document.getElementById('app'));

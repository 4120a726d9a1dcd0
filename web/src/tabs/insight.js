// What weft knows of a workload or a node: its week, the forecast, the fold of its cycles, its class, what was unusual, what goes together.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, pathOf, query } from '../api.js';
import { age, inUnit, moment, number, percent } from '../format.js';
import { kinds, may, now, toObject } from '../state.js';
import { Age, Command, Empty, ProblemBox } from '../ui/parts.js';
import Chart from '../ui/chart.js';
import { Fold } from '../ui/fold.js';

const WEEK_SECONDS = 604_800;
const STEP_SECONDS = 300;
const LEAST_STEP_SECONDS = 60;
const AGAIN_MS = 60_000;
const MOST = { samples: 2016, patterns: 6, correlations: 20, anomalies: 40, text: 200 };
const CHANNELS = { jump: 'it jumped', level: 'its level', hour: 'the level of the hour', spread: 'its unrest', pattern: 'the order of its values' };
const CLASSES = {
  idle: 'it does almost nothing', steady: 'it uses about the same all the time', cyclic: 'what it does comes again and again', bursty: 'short peaks over little',
  batch: 'long stretches of work, and long ones of none', growing: 'it uses more and more', irregular: 'it wanders: its past says little of its future', unknown: 'no class fits well enough, or there is too little history',
};

const profileKindOf = (kind) => (kind === 'node' ? 'nodeprofile' : 'workloadprofile');

export function Insight({ row, object }) {
  const kind = kinds.value.get(profileKindOf(row.kind));
  const [profile, setProfile] = useState(undefined); // null: there is none yet
  const [past, setPast] = useState({ points: null, problem: null });
  const [error, setError] = useState(null);
  const permission = `${kind.name}:get`;
  const isAllowed = may(permission, row.project);
  useEffect(() => {
    if (!isAllowed) return undefined;
    let isOver = false;
    let timer = 0;
    const read = async () => {
      try {
        const found = await get(pathOf(kind, row.project, row.kind === 'node' ? row.name : `${row.kind}.${row.name}`));
        if (isOver) return;
        setProfile(found.status ?? {});
        setError(null);
        const points = await readPast(row, object.created_at ?? 0).then((points) => ({ points, problem: null }), (problem) => ({ points: null, problem }));
        if (!isOver) setPast(points);
      } catch (problem) {
        if (isOver) return;
        if (problem.status === 404) setProfile(null); else setError(problem);
      }
      if (!isOver) timer = setTimeout(read, AGAIN_MS);
    };
    read();
    return () => { isOver = true; clearTimeout(timer); };
  }, [row.uid, isAllowed]);
  const words = `weft insight ${row.kind}/${row.name}${row.project && row.project !== 'default' ? ` -p ${row.project}` : ''} --plot`;
  if (!isAllowed) return html`<p role="alert">You lack the permission <code>${permission}</code>.</p>`;
  return html`<${ProblemBox} error=${error} />
    ${profile === undefined && !error && html`<p class="soft">Reading the profile…</p>`}
    ${profile === null && html`<${Empty} words="Nothing is known of it yet: its profile comes when it is five minutes old, and needs a history of metrics. Tasks of jobs have none." />`}
    ${profile && html`<${Profile} of=${profile} row=${row} past=${past} />`}
    <${Command} words=${words} />`;
}

// The last week, as [seconds, value] with gaps as null: every five minutes, or finer where it is younger. What had the same name
// before it isn't its past.
async function readPast(row, since) {
  const now = Date.now() / 1000;
  const step = Math.max(LEAST_STEP_SECONDS, Math.min(STEP_SECONDS, Math.ceil((now - since) / MOST.samples / 60) * 60));
  const end = Math.floor(now / step) * step;
  const start = Math.min(end, Math.max(end - WEEK_SECONDS, Math.ceil(since / step) * step));
  const found = await get(`/api/v1/query_range?${query({ query: queryOf(row, step), start, end, step })}`);
  const known = new Map((found.data?.result?.[0]?.values ?? []).map(([at, value]) => [Math.round(at / step) * step, Number(value)]));
  if (!known.size) return [];
  const first = Math.min(...known.keys());
  return Array.from({ length: Math.round((end - first) / step) + 1 }, (_, index) => first + index * step).map((at) => [at, known.get(at) ?? null]);
}

// As `weft insight --plot` asks. Names are DNS labels: no quote is in them.
function queryOf(row, step) {
  if (row.kind === 'node') return `max by (node) (avg_over_time(weft_node_cpu_used_cores{node='${row.name}'}[${step}s]))`;
  const of = `{project='${row.project}',kind='${row.kind}',name='${row.name}'}[${step}s]`;
  return row.kind === 'function' ? `sum by (name) (rate(weft_function_invocations_total${of}))` : `max by (name) (avg_over_time(weft_guest_cpu_cores${of}))`;
}

const cut = (text) => String(text).slice(0, MOST.text);

function Profile({ of, row, past }) {
  const unit = of.unit || 'cores';
  const forecasts = Object.entries(of.prediction ?? {}).sort(([, one], [, other]) => one.seconds - other.seconds);
  const missing = Object.entries(of.missing ?? {});
  const reasonOf = (field) => missing.find(([name]) => name === field)?.[1];
  const anomalies = (of.anomalies ?? []).slice(0, MOST.anomalies);
  const signature = of.signature ?? { class: 'unknown', probability: 0 };
  const why = (field, otherwise) => html`<p class="soft">${cut(reasonOf(field) ?? otherwise)}</p>`;
  return html`<div class="panels">
    <section class="panel"><h2>What it is</h2><dl class="facts">
      <dt>class</dt><dd><b>${cut(signature.class)}</b>${signature.probability > 0 ? `, ${percent(signature.probability)} sure` : ''}<br /><span class="soft">${reasonOf('signature') ? cut(reasonOf('signature')) : CLASSES[signature.class] ?? ''}</span></dd>
      <dt>stability</dt><dd>${of.stability == null ? html`–<br /><span class="soft">${cut(reasonOf('stability') ?? 'it needs more history')}</span>` : html`${number(of.stability, 2)}<br /><span class="soft">1: what comes is known; 0: anything may come</span>`}</dd>
      <dt>history</dt><dd>${of.history_seconds > 0 ? age(of.history_seconds) : 'none yet'}</dd>
      ${of.looked_at > 0 && html`<dt>looked at</dt><dd><${Age} since=${Math.min(of.looked_at, now.value)} /> ago</dd>`}
      ${of.full > 0 && html`<dt>may use</dt><dd>${inUnit(of.full, unit)}</dd>`}</dl></section>
    <section class="panel"><h2>What comes</h2>
      ${!forecasts.length && why('prediction', 'Nothing is forecast yet: it needs an hour of history.')}
      ${forecasts.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Forecasts"><table><thead><tr><th>IN</th><th class="number">VALUE</th><th class="number">4 IN 5 BETWEEN</th><th>BY</th></tr></thead><tbody>
        ${forecasts.map(([name, one]) => html`<tr key=${name}><td>${cut(name)}</td><td class="number">${inUnit(one.value, unit)}</td><td class="number">${number(one.low, 2)}–${number(one.high, 2)}</td><td class="soft"><bdi>${cut(one.method)}</bdi></td></tr>`)}</tbody></table></div>`}</section>
    <section class="panel broad"><h2>The last week</h2><${Past} past=${past} of=${of} unit=${unit} forecasts=${forecasts} anomalies=${anomalies} /></section>
    <section class="panel broad"><h2>Cycles</h2>
      ${!of.patterns?.length && why('patterns', 'No cycle was found: what it does doesn’t come again at equal intervals.')}
      <div class="panels">${(of.patterns ?? []).slice(0, MOST.patterns).map((pattern, index) => html`<${Fold} key=${index} pattern=${pattern} unit=${unit} />`)}</div></section>
    <section class="panel broad"><h2>What was unusual</h2>
      ${!anomalies.length && why('anomalies', 'Nothing was unusual in the last week.')}
      ${anomalies.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Unusual"><table><thead><tr><th>WHEN</th><th>WHAT</th><th class="number">VALUE</th><th class="number">USUAL</th><th class="number">ONCE IN</th></tr></thead><tbody>
        ${anomalies.map((one, index) => html`<tr key=${index}><td>${moment(one.at)}</td><td><bdi>${CHANNELS[one.channel] ?? cut(one.channel)}</bdi></td><td class="number">${inUnit(one.value, unit)}</td>
          <td class="number">${one.low == null || one.high == null ? '–' : `${number(one.low, 2)}–${number(one.high, 2)}`}</td><td class="number">${rarity(one.score)}</td></tr>`)}</tbody></table></div>`}</section>
    <section class="panel broad"><h2>What goes together</h2>
      ${!of.correlations?.length && why('correlations', 'Nothing changes together with it, beyond what chance explains.')}
      ${of.correlations?.length > 0 && html`<div class="scroll whole" tabindex="0" role="region" aria-label="Goes together"><table><thead><tr><th>ITS</th><th>GOES WITH</th><th>OF</th><th class="number">CORRELATION</th></tr></thead><tbody>
        ${of.correlations.slice(0, MOST.correlations).map((one, index) => html`<tr key=${index}><td>${cut(one.resource)}</td><td>${cut(one.other || one.resource)}</td><td><${Other} name=${one.workload} project=${row.project} /></td><td class="number">${number(one.correlation, 2)}</td></tr>`)}</tbody></table></div>`}</section>
  </div>`;
}

function Past({ past, of, unit, forecasts, anomalies }) {
  if (past.problem) return html`<p class="soft">The history can’t be drawn: ${past.problem.message}${past.problem.hint ? `; ${past.problem.hint}` : ''}</p>`;
  if (!past.points) return html`<p class="soft">Reading the history…</p>`;
  if (past.points.length < 2) return html`<p class="soft">No history of it is kept yet: it is younger than ten minutes, or its node sends no metrics.</p>`;
  const [at, value] = past.points.findLast((point) => point[1] != null) ?? past.points.at(-1);
  const from = of.sampled_at || at;
  const ahead = (field) => [[at, value], ...forecasts.map(([, one]) => [from + one.seconds, one[field]]).filter(([when]) => when > at)];
  const lines = [{ name: 'used', unit, points: past.points }];
  if (forecasts.length) lines.push(...[['forecast', 'value'], ['upper', 'high'], ['lower', 'low']].map(([name, field]) => ({ name, unit, points: ahead(field) })));
  return html`<${Chart} title="Used, and what comes" series=${lines} band=${forecasts.length ? ['upper', 'lower'] : null} marks=${anomalies.map((one) => ({ at: one.at, words: one.channel }))} height=${220} />
    <p class="soft">Dashed: unusual. ${forecasts.length ? 'Shaded: four times in five it is there.' : ''}</p>`;
}

const rarity = (score) => (score == null ? '–' : `${number(10 ** Math.min(12, score), 0)} samples`);

function Other({ name, project }) {
  const [kind, other] = (name ?? '').split('/');
  if (!name) return html`<span class="soft">its own</span>`;
  return kinds.value.has(kind) && other ? html`<a class="mono" href=${toObject({ kind, project, name: other })}>${cut(name)}</a>` : html`<bdi>${cut(name)}</bdi>`;
}

// Lines over time by uPlot: one x axis for all charts of a page, gaps drawn as gaps, the unit on the axis. uPlot is loaded with the first one.
import uPlot from 'uplot';
import { useEffect, useRef } from 'preact/hooks';
import { html } from '../html.js';
import { inUnit, number } from '../format.js';

const LINES = ['--accent', '--changing', '--degraded', '--unknown', '--running', '--failed'];
// A colour of the style as the canvas takes it.
const resolved = (element, name) => {
  const probe = document.createElement('i');
  probe.style.color = `var(${name})`;
  element.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

const POWERS = Array.from({ length: 60 }, (_, power) => 2 ** power); // bytes
const IDLE = 1; // the top of a chart without anything
const isUsed = (plot) => plot.data.slice(1).some((points) => points.some((point) => point > 0));
const DAY_SECONDS = 86_400;
const timeOf = (at, isLong) => {
  const when = new Date(at * 1000);
  return isLong ? `${when.toLocaleDateString('en-GB', { weekday: 'short' })} ${when.toLocaleTimeString('en-GB').slice(0, 5)}` : when.toLocaleTimeString('en-GB');
};

// series: [{name, unit, points: [[seconds, value or null], …]}], all of one unit; events: [{at, words}] are marked by a line; band: the
// names of two series, upper and lower, between which it is shaded.
export default function Chart({ title, series, marks = [], band = null, height = 160 }) {
  const box = useRef(null);
  const plot = useRef(null);
  const unit = series[0]?.unit ?? '';
  const names = series.map((each) => each.name).join();
  useEffect(() => {
    const element = box.current;
    const soft = resolved(element, '--soft');
    const grid = { stroke: soft, width: 0.3 };
    const inBytes = /bytes|B\/s/.test(unit);
    const options = {
      width: element.clientWidth || 400, height, padding: [8, 16, 0, 0],
      cursor: { sync: { key: 'samples' }, drag: { x: false, y: false } }, legend: { show: false },
      scales: { x: { time: true }, y: { range: (_, least, most) => [Math.min(0, least ?? 0), (most ?? 0) > 0 ? most * 1.1 : IDLE] } },
      axes: [{ stroke: soft, grid, values: (_, at) => at.map((each) => timeOf(each, at.at(-1) - at[0] > DAY_SECONDS)), space: 80, size: 28 },
        { stroke: soft, grid, incrs: inBytes ? POWERS : undefined, size: (_, words) => (words ? 16 + 7 * Math.max(...words.map((each) => (each ?? '').length)) : 48),
          // What is idle has a line at 0, and no other figure to compare with; a figure stands once.
          values: (drawn, at) => { const ticks = at.map((each) => (inBytes ? inUnit(each, unit) : number(each, 3))); return ticks.map((words, place) => (ticks.indexOf(words) === place && (at[place] === 0 || isUsed(drawn)) ? words : '')); } }],
      series: [{}, ...series.map((each, place) => ({ label: each.name, stroke: resolved(element, LINES[place % LINES.length]), width: 1.5, spanGaps: false, points: { show: false } }))],
      bands: band ? [{ series: band.map((name) => 1 + series.findIndex((each) => each.name === name)), fill: resolved(element, LINES[1]).replaceAll(', ', ' ').replace(')', ' / 0.2)') }] : [],
      hooks: { draw: [(drawn) => drawMarks(drawn, marks)] },
    };
    plot.current = new uPlot(options, aligned(series), element);
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height }));
    observer.observe(element);
    return () => { observer.disconnect(); plot.current.destroy(); plot.current = null; };
  }, [names, unit]);
  useEffect(() => { plot.current?.setData(aligned(series)); }, [series]);
  const last = series.map((each) => each.points.findLast((point) => point[1] != null)?.[1]);
  return html`<figure style=${{ margin: 0 }} aria-label=${`${title}: ${series.map((each, place) => `${each.name} ${inUnit(last[place], unit)}`).join(', ')}`}>
    <figcaption><b>${title}</b> <span class="legend">${series.map((each, place) => html`<span key=${each.name} style=${{ color: `var(${LINES[place % LINES.length]})` }}><i></i>${each.name} ${inUnit(last[place], unit)}</span>`)}</span></figcaption>
    <div class="chart" ref=${box}></div></figure>`;
}

function aligned(series) {
  if (!series.length) return [[]];
  const times = [...new Set(series.flatMap((each) => each.points.map((point) => point[0])))].sort((a, b) => a - b);
  return [times, ...series.map((each) => { const known = new Map(each.points); return times.map((at) => known.get(at) ?? null); })];
}

function drawMarks(plot, marks) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = '#8888';
  ctx.setLineDash([4, 4]);
  for (const mark of marks) {
    const x = plot.valToPos(mark.at, 'x', true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

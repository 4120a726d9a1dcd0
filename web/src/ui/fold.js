// One cycle of a workload, as the median of all its turns; its peaks are shaded from half their height to half their height.
import { html } from '../html.js';
import { inUnit, percent } from '../format.js';

const WIDTH = 320;
const HEIGHT = 110;
const FOOT = 18;
const DAY_SECONDS = 86_400;

export function Fold({ pattern, unit }) {
  const values = (pattern.fold ?? []).filter((each) => Number.isFinite(each)).slice(0, 200);
  const most = Math.max(...values, 0) || 1;
  const left = (at) => (WIDTH * ((((at - pattern.fold_at) % pattern.cycle_seconds) + pattern.cycle_seconds) % pattern.cycle_seconds)) / pattern.cycle_seconds;
  const path = values.map((value, index) => `${index ? 'L' : 'M'}${((WIDTH * index) / (values.length - 1)).toFixed(1)} ${(HEIGHT - (HEIGHT - 8) * Math.max(0, value / most)).toFixed(1)}`).join('');
  const told = [['peak', pattern.peaks ?? []], ['low', pattern.troughs ?? []]].map(([words, all]) => all.slice(0, 4).map((one) => `${words} at ${timeOf(one.at, pattern)} (${timeOf(one.start, pattern)}–${timeOf(one.end, pattern)}): ${inUnit(one.value, unit)}`)).flat();
  return html`<figure class="fold"><figcaption><b><bdi>${String(pattern.type).slice(0, 60)}</bdi></b> <span class="soft">${percent(pattern.confidence)} sure</span></figcaption>
    ${values.length > 1 && html`<svg viewBox=${`0 0 ${WIDTH} ${HEIGHT + FOOT}`} role="img" aria-label=${`One cycle; ${told.join('; ')}`}>
      ${(pattern.peaks ?? []).slice(0, 4).flatMap((one, index) => spansOf(left(one.start), left(one.end)).map(([from, to]) => html`<rect key=${`${index} ${from}`} x=${from} y="0" width=${Math.max(1, to - from)} height=${HEIGHT} />`))}
      <line x1="0" x2=${WIDTH} y1=${HEIGHT} y2=${HEIGHT} /><path d=${path} />
      ${[0, 1, 2, 3, 4].map((part) => html`<text key=${part} x=${(WIDTH * part) / 4} y=${HEIGHT + FOOT - 4} text-anchor=${['start', 'middle', 'middle', 'middle', 'end'][part]}>${timeOf(pattern.fold_at + (part * pattern.cycle_seconds) / 4, pattern)}</text>`)}
    </svg>`}
    <ul class="list">${told.map((words) => html`<li key=${words}>${words}</li>`)}</ul></figure>`;
}

// What crosses the end of the cycle goes on at its beginning.
const spansOf = (from, to) => (to >= from ? [[from, to]] : [[from, WIDTH], [0, to]]);

function timeOf(at, { cycle_seconds: cycle }) {
  const when = new Date(at * 1000);
  const clock = when.toLocaleTimeString('en-GB').slice(0, 5);
  return cycle > 1.5 * DAY_SECONDS ? `${when.toLocaleDateString('en-GB', { weekday: 'short' })} ${clock}` : clock;
}

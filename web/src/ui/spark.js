// A small line over time, without axes: its words say what it shows. Gaps are drawn as gaps.
import { html } from '../html.js';

const WIDTH = 200;
const HEIGHT = 40;

// points: [[seconds, value], …]; `line`: a level to compare with, dashed.
export function Spark({ points, words, seconds = 3600, line = null, tall = false }) {
  const known = points.filter((point) => point[1] != null);
  if (known.length < 2) return null;
  const until = known.at(-1)[0];
  const from = Math.min(known[0][0], until - seconds);
  const top = Math.max(line ?? 0, ...known.map((point) => point[1])) * 1.1 || 1;
  const step = Math.min(...known.slice(1).map((point, place) => point[0] - known[place][0]));
  const x = (at) => ((at - from) / (until - from || 1)) * WIDTH;
  const y = (value) => HEIGHT - 1 - Math.min(1, value / top) * (HEIGHT - 2);
  const path = known.map(([at, value], place) => `${place && at - known[place - 1][0] < 2.5 * step ? 'L' : 'M'}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join('');
  return html`<svg class=${`spark ${tall ? 'tall' : ''}`} viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label=${words}><title>${words}</title>
    ${line != null && html`<line x1="0" x2=${WIDTH} y1=${y(line)} y2=${y(line)} />`}<path d=${path} /></svg>`;
}

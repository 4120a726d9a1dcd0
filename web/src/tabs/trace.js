// What the newest write of an object took its time for.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, query } from '../api.js';
import { link } from '../state.js';
import { returns } from '../stream.js';
import { Empty, ProblemBox } from '../ui/parts.js';
import { Waterfall } from '../ui/waterfall.js';

const SINCE_SECONDS = [3600, 7 * 86_400]; // the last hour first: it is read fast

export function Trace({ row, object }) {
  const [trace, setTrace] = useState(null);
  const [error, setError] = useState(null);
  const about = `${row.kind}/${row.project || '-'}/${row.name}`;
  useEffect(() => {
    let isOver = false;
    const read = async () => {
      let found = '';
      try {
        for (const seconds of SINCE_SECONDS) {
          found ||= (await get(`/v1/traces?${query({ object: about, since: Date.now() / 1000 - seconds, limit: 1 })}`)).items[0]?.trace ?? '';
        }
        if (!isOver) { setTrace(found); setError(null); }
      } catch (problem) { if (!isOver) setError(problem); }
    };
    read();
    return () => { isOver = true; };
  }, [about, object.trace, returns.value]);
  return html`<${ProblemBox} error=${error} />
    ${trace === null && !error && html`<p class="soft">Reading traces…</p>`}
    ${trace === '' && html`<${Empty} words="There is no trace of it. What people change is traced, and kept for 7 days at most." command="weft trace list" />`}
    ${trace && html`<p><a href=${link(['traces'], { object: about, since: 604_800 })}>All traces of ${row.name}</a></p><${Waterfall} key=${trace} trace=${trace} />`}`;
}

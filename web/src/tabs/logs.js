// What a guest prints, as it comes; only the newest part is kept in the page.
import { useEffect, useRef, useState } from 'preact/hooks';
import { html } from '../html.js';
import { link } from '../state.js';
import { follow } from './stream.js';

const MOST = 200_000; // characters

export function Logs({ row, kind }) {
  const box = useRef(null);
  const [text, setText] = useState('');
  const [state, setState] = useState('');
  const [isFollowing, setFollowing] = useState(true);
  const [filter, setFilter] = useState('');
  useEffect(() => {
    let whole = '';
    let frame = 0;
    setText('');
    setState('Reading…');
    const input = kind.name === 'function' ? { tail: 500, follow: isFollowing } : { tail: 1000, follow: isFollowing };
    const stop = follow(row, 'logs', input, {
      onOpen: () => setState(''),
      onText: (piece, isFirst) => {
        whole = ((isFirst ? '' : whole) + piece).slice(-MOST);
        frame ||= requestAnimationFrame(() => { frame = 0; setText(whole); });
      },
      onLost: setState,
      onEnd: (words) => setState(words || (isFollowing ? 'The log has ended.' : '')),
    });
    return () => { stop(); cancelAnimationFrame(frame); };
  }, [row.uid, isFollowing]);
  useEffect(() => { if (isFollowing && box.current) box.current.scrollTop = box.current.scrollHeight; }, [text]);
  // Terminals' escape sequences say nothing here.
  const plain = text.replace(/\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\r/g, '');
  const shown = filter ? plain.split('\n').filter((line) => line.toLowerCase().includes(filter.toLowerCase())).join('\n') : plain;
  return html`<div class="row"><input type="search" aria-label="Only lines with" placeholder="Only lines with…" value=${filter} onInput=${(event) => setFilter(event.target.value)} />
    <label class="row"><input type="checkbox" checked=${isFollowing} onChange=${(event) => setFollowing(event.target.checked)} /> follow</label>
    <a href=${link(['logs'], { of: `${row.kind}/${row.project}/${row.name}` })}>together with others</a>
    <span class="soft" role="status">${state}</span></div>
    <pre class="log" ref=${box} tabindex="0" aria-label="Log">${shown || (state ? '' : 'Nothing was printed yet.')}</pre>`;
}

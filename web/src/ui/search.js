// One box that finds any object: by name, address, label or uid. `/` opens it from anywhere.
import { useEffect, useRef, useState } from 'preact/hooks';
import { html } from '../html.js';
import { get, query } from '../api.js';
import { kinds, noticeOf, toObject } from '../state.js';
import { State } from './parts.js';

export function Search() {
  const box = useRef(null);
  const [text, setText] = useState('');
  const [items, setItems] = useState(null);
  const [at, setAt] = useState(0);
  useEffect(() => {
    const onKey = (event) => {
      if (event.key === '/' && !event.target.closest('input, select, textarea, [contenteditable], .screen')) { event.preventDefault(); box.current.focus(); }
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, []);
  useEffect(() => {
    if (!text.trim()) { setItems(null); return undefined; }
    const later = setTimeout(() => get(`/v1/dashboard/search?${query({ q: text.slice(0, 200) })}`).then((found) => { setItems(found.items); setAt(0); }, noticeOf), 150);
    return () => clearTimeout(later);
  }, [text]);
  const leave = () => { setText(''); setItems(null); box.current.blur(); };
  const onKey = (event) => {
    if (event.key === 'Escape') leave();
    if (event.key === 'ArrowDown') { setAt(Math.min((items?.length ?? 1) - 1, at + 1)); event.preventDefault(); }
    if (event.key === 'ArrowUp') { setAt(Math.max(0, at - 1)); event.preventDefault(); }
    if (event.key === 'Enter' && items?.[at]) { location.hash = toObject(items[at]); leave(); }
  };
  return html`<div class="found grow" style=${{ maxWidth: '420px' }}>
    <input ref=${box} type="search" role="combobox" aria-label="Search everything" aria-expanded=${Boolean(items)} aria-controls="found" aria-autocomplete="list"
      aria-activedescendant=${items?.[at] ? `found-${at}` : undefined} style=${{ width: '100%' }} placeholder="Search everything  /" value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${onKey} />
    <ul id="found" class="results" role="listbox" aria-label="Found" hidden=${!items}>
      ${items?.length === 0 && html`<li role="option" aria-selected="false" class="empty">Nothing has these words.</li>`}
      ${items?.map((row, place) => html`<li key=${row.uid} id=${`found-${place}`} role="option" aria-selected=${place === at}>
        <a href=${toObject(row)} tabindex="-1" onClick=${leave}><span class="soft">${kinds.value.get(row.kind)?.title ?? row.kind}</span>
        <b class="mono grow">${row.name}</b><span class="soft">${row.project}</span><${State} phase=${row.phase} health=${row.health} /></a></li>`)}
    </ul>
  </div>`;
}

// A part of the page that is loaded when it is first shown.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';

export function lazy(load, meanwhile = html`<p class="soft">Loading…</p>`) {
  let Loaded = null;
  return function Lazy(given) {
    const [ready, setReady] = useState(Boolean(Loaded));
    const [failed, setFailed] = useState('');
    useEffect(() => {
      let isOver = false;
      if (!Loaded) load().then((part) => { Loaded = part; if (!isOver) setReady(true); }, () => { if (!isOver) setFailed('This part of the page could not be loaded; the server may be restarting.'); });
      return () => { isOver = true; };
    }, []);
    if (failed) return html`<p role="alert">${failed} <a href="">Load the page again</a></p>`;
    return ready ? html`<${Loaded} ...${given} />` : meanwhile;
  };
}

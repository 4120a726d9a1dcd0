// A part of the page that is loaded when it is first shown.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { returns } from '../stream.js';

export function lazy(load, meanwhile = html`<p class="soft">Loading…</p>`) {
  let Loaded = null;
  return function Lazy(given) {
    const [ready, setReady] = useState(Boolean(Loaded));
    const [failed, setFailed] = useState(false);
    const back = returns.value;
    useEffect(() => {
      let isOver = false;
      const fail = () => {
        if (isOver) return;
        if (failed) location.reload(); // the server is back: with another release, or the browser remembers that there was none
        else setFailed(true);
      };
      if (!Loaded) load().then((part) => { Loaded = part; if (!isOver) { setFailed(false); setReady(true); } }, fail);
      return () => { isOver = true; };
    }, [back]);
    if (failed) return html`<p role="alert">This part of the page could not be loaded: the page tries again when the server is back. <a href="">Load the page again</a></p>`;
    return ready ? html`<${Loaded} ...${given} />` : meanwhile;
  };
}

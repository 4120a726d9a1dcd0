// A VM's screen (RFB) by noVNC. Loaded when the tab opens.
import RFB from '@novnc/novnc';
import { useEffect, useRef, useState } from 'preact/hooks';
import { html } from '../html.js';
import { connect, lost } from './stream.js';

export function Screen({ row }) {
  const box = useRef(null);
  const rfb = useRef(null);
  const [ended, setEnded] = useState('');
  const [again, setAgain] = useState(0);
  useEffect(() => {
    let isOver = false;
    setEnded('');
    connect(row, 'screen', {}).then((socket) => {
      if (isOver) { socket.close(); return; }
      socket.addEventListener('close', (event) => { if (!isOver) setEnded(lost(event)); });
      rfb.current = new RFB(box.current, socket);
      rfb.current.scaleViewport = true;
      rfb.current.addEventListener('disconnect', () => { rfb.current = null; });
    }, (error) => setEnded(`${error.message}${error.hint ? `; ${error.hint}` : ''}`));
    return () => { isOver = true; rfb.current?.disconnect(); };
  }, [row.uid, again]);
  return html`<div class="row"><button type="button" onClick=${() => rfb.current?.sendCtrlAltDel()}>Send Ctrl-Alt-Del</button>
    ${ended && html`<span role="alert">${ended}</span><button type="button" onClick=${() => setAgain(again + 1)}>Connect again</button>`}</div>
    <div class="screen" ref=${box} role="region" aria-label=${`Screen of ${row.name}`}></div>`;
}

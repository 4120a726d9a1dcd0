// A terminal in the browser: a shell in the guest (exec), or its serial console. Loaded when the tab opens.
import { FitAddon } from '@xterm/addon-fit';
import { Terminal as Xterm } from '@xterm/xterm';
import { useEffect, useRef, useState } from 'preact/hooks';
import { html } from '../html.js';
import { connect, lost } from './stream.js';

export function Terminal({ row, verb }) {
  const box = useRef(null);
  const [ended, setEnded] = useState('');
  const [again, setAgain] = useState(0);
  useEffect(() => {
    const terminal = new Xterm({ cursorBlink: true, fontSize: 13, scrollback: 5000, screenReaderMode: true });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    terminal.open(box.current);
    fit.fit();
    const onResize = () => fit.fit();
    addEventListener('resize', onResize);
    let socket = null;
    let isOver = false;
    setEnded('');
    const input = verb === 'exec' ? { argv: ['/bin/sh', '-i'], tty: true, rows: terminal.rows, columns: terminal.cols, env: { TERM: 'xterm-256color' } } : {};
    connect(row, verb, input).then((opened) => {
      if (isOver) { opened.close(); return; }
      socket = opened;
      socket.onmessage = (event) => terminal.write(new Uint8Array(event.data));
      socket.onclose = (event) => { if (!isOver) setEnded(event.reason || (event.code === 1000 ? 'The stream has ended.' : lost(event))); };
      terminal.onData((text) => { if (socket.readyState === WebSocket.OPEN) socket.send(new TextEncoder().encode(text)); });
      terminal.focus();
    }, (error) => setEnded(`${error.message}${error.hint ? `; ${error.hint}` : ''}`));
    return () => { isOver = true; socket?.close(); removeEventListener('resize', onResize); terminal.dispose(); };
  }, [row.uid, verb, again]);
  return html`${ended && html`<div class="problem row" role="alert"><span class="grow">${ended}</span><button type="button" onClick=${() => setAgain(again + 1)}>Connect again</button></div>`}
    <div class="screen" ref=${box}></div>`;
}

// Packets of a workload as a file for tcpdump and Wireshark: they come over a stream, and are given to the browser's downloads.
import { useEffect, useRef, useState } from 'preact/hooks';
import { html } from '../html.js';
import { quote, size } from '../format.js';
import { Command } from '../ui/parts.js';
import { connect, lost } from './stream.js';

const HEAD = 24;
const PACKET_HEAD = 16;
const ENDS = { seconds: 'the time is over', size: 'it has its largest size', asked: 'you ended it' };
const SIZE = 50 << 20; // the page holds it in memory

export function Capture({ row }) {
  const [filter, setFilter] = useState('');
  const [seconds, setSeconds] = useState(30);
  const [state, setState] = useState('');
  const [isRunning, setRunning] = useState(false);
  const run = useRef(null);
  useEffect(() => () => { if (run.current) { run.current.isOver = true; run.current.socket?.close(); } }, [row.uid]);

  const begin = async (event) => {
    event.preventDefault();
    const mine = { pieces: [], bytes: 0, socket: null, isOver: false, isStopped: false };
    run.current = mine;
    setRunning(true);
    setState('Capturing…');
    const end = (words) => {
      if (mine.isOver) return;
      mine.isOver = true;
      run.current = null;
      setRunning(false);
      const { file, packets, report } = cut(mine.pieces);
      if (file) save(file, `${row.name}.pcap`);
      const dropped = report?.dropped ? `; ${report.dropped} more came too fast and were dropped` : '';
      setState(file ? `${packets} packets, ${size(file.size)}${dropped}: ${words || ENDS[report?.ended] || 'it has ended'}` : words || 'No packets came.');
    };
    try {
      mine.socket = await connect(row, 'capture', { filter, seconds: Number(seconds), size: SIZE });
    } catch (error) {
      end(`${error.message}${error.hint ? `; ${error.hint}` : ''}`);
      return;
    }
    if (mine.isOver || mine.isStopped) { mine.socket.close(); end('you ended it'); return; }
    mine.socket.onmessage = (message) => {
      mine.pieces.push(new Uint8Array(message.data));
      mine.bytes += message.data.byteLength;
      if (!mine.isStopped) setState(`Capturing… ${size(mine.bytes)}`);
    };
    mine.socket.onclose = (closed) => end(mine.isStopped ? 'you ended it' : closed.code === 1000 ? '' : lost(closed));
  };
  const stop = () => {
    const mine = run.current;
    if (!mine) return;
    mine.isStopped = true;
    mine.socket?.close();
  };
  return html`<form class="row" onSubmit=${begin}>
      <label>Filter <input type="text" maxlength="1000" placeholder="tcp port 80" value=${filter} disabled=${isRunning} onInput=${(event) => setFilter(event.target.value)} /></label>
      <label>Seconds <input type="number" min="1" max="600" required value=${seconds} disabled=${isRunning} onInput=${(event) => setSeconds(event.target.value)} /></label>
      ${isRunning ? html`<button type="button" onClick=${stop}>Stop</button>` : html`<button type="submit" class="main-action">Capture</button>`}
    </form>
    <p role="status">${state}</p>
    <p class="soft">The file is for tcpdump and Wireshark. The filter is in tcpdump's language; without one every packet comes. Who captured what is in the audit log.</p>
    <${Command} words=${`weft network capture ${row.kind}/${row.name} ${filter ? `--filter ${quote(filter)} ` : ''}--seconds ${seconds} > ${row.name}.pcap`} />`;
}

// What came: the file up to its last whole packet, and the node's report, which comes last, as a message of its own.
export function cut(pieces) {
  const data = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  let last = 0;
  for (const piece of pieces) { data.set(piece, at); last = at; at += piece.length; }
  if (data.length < HEAD) return { file: null, packets: 0, report: null };
  const view = new DataView(data.buffer);
  let packets = 0;
  let report = null;
  for (at = HEAD; at < data.length; packets += 1) {
    if (at === last && data[at] === 0x7b) {
      try { report = JSON.parse(new TextDecoder().decode(data.subarray(at))); break; } catch { /* a packet begins with that byte */ }
    }
    if (at + PACKET_HEAD > data.length) break;
    const next = at + PACKET_HEAD + view.getUint32(at + 8, true);
    if (next > data.length) break;
    at = next;
  }
  return { file: new Blob([data.subarray(0, at)], { type: 'application/vnd.tcpdump.pcap' }), packets, report };
}

function save(file, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// A byte stream of an object through the gateway: a ticket from the API, then a web socket.
import { pathOf, post } from '../api.js';
import { gateway, kinds } from '../state.js';

const LONGEST_PAUSE = 5000; // milliseconds
const MOST_TRIES = 20;

export async function connect(row, verb, input) {
  const kind = kinds.value.get(row.kind);
  const { ticket, address } = await post(pathOf(kind, row.project, row.name, verb), input);
  // The API server serves this page in HTTPS only: in HTTP it comes through `weft dashboard`, which passes streams on, too.
  const base = location.protocol === 'http:' ? `ws://${location.host}` : `wss://${address ?? gateway.value.streams}`;
  const socket = new WebSocket(`${base}/v1/stream?ticket=${encodeURIComponent(ticket)}`);
  socket.binaryType = 'arraybuffer';
  socket.addEventListener('open', () => { socket.hasOpened = true; });
  return socket;
}

// A stream that goes on: it is opened again when its connection is lost or no server answers, until it ends by itself, is refused, or
// what this returns is called. `onText(text, isFirst)`: the first text of a connection begins again as `input` says; `onEnd('')`: all is said.
export function follow(row, verb, input, { onOpen = () => {}, onText, onLost, onEnd }) {
  let socket = null;
  let timer = 0;
  let tries = 0;
  let isOver = false;
  const again = (words) => {
    tries += 1;
    onLost(`${words}; the page tries again by itself`);
    timer = setTimeout(open, Math.min(1000 * tries, LONGEST_PAUSE));
  };
  async function open() {
    const decoder = new TextDecoder();
    let isFirst = true;
    try {
      const opened = await connect(row, verb, input);
      if (isOver) { opened.close(); return; }
      socket = opened;
    } catch (error) {
      if (isOver) return;
      if (error.status === 0 || error.status >= 500) again(error.message);
      else onEnd(`${error.message}${error.hint ? `; ${error.hint}` : ''}`);
      return;
    }
    socket.onopen = onOpen;
    socket.onmessage = (event) => {
      if (isOver) return;
      tries = 0;
      onText(decoder.decode(event.data, { stream: true }), isFirst);
      isFirst = false;
    };
    socket.onclose = (event) => {
      if (isOver) return;
      if (event.code === 1000) onEnd('');
      else if (event.reason && (!tries || tries > MOST_TRIES)) onEnd(event.reason); // after a restart its node may still be on the way
      else again(lost(event));
    };
  }
  open();
  return () => { isOver = true; clearTimeout(timer); socket?.close(); };
}

// All that a short stream says, as text. Rejects with the words of its end where that is an error.
export async function readStream(row, verb, input) {
  const socket = await connect(row, verb, input);
  return new Promise((resolve, reject) => {
    const pieces = [];
    const decoder = new TextDecoder();
    socket.onmessage = (event) => pieces.push(decoder.decode(event.data, { stream: true }));
    socket.onclose = (event) => (event.code === 1000 ? resolve(pieces.join('')) : reject(new Error(lost(event))));
  });
}

// Why a stream closed, in words.
export function lost({ code, reason, target }) {
  if (reason || code !== 1006) return reason || 'the stream was cut';
  return target.hasOpened || location.protocol === 'http:' ? 'the connection to the server was lost'
    : 'the browser could not connect to the gateway; its certificate may not be trusted yet: weft dashboard on your own machine needs none';
}

// A byte stream of an object through the gateway: a ticket from the API, then a web socket.
import { pathOf, post } from '../api.js';
import { gateway, kinds } from '../state.js';

export async function connect(row, verb, input) {
  const kind = kinds.value.get(row.kind);
  const { ticket, address } = await post(pathOf(kind, row.project, row.name, verb), input);
  // The API server serves this page in HTTPS only: in HTTP it comes through `weft dashboard`, which passes streams on, too.
  const base = location.protocol === 'http:' ? `ws://${location.host}` : `wss://${address ?? gateway.value.streams}`;
  const socket = new WebSocket(`${base}/v1/stream?ticket=${encodeURIComponent(ticket)}`);
  socket.binaryType = 'arraybuffer';
  return socket;
}

// All that a short stream says, as text. Rejects with the words of its end where that is an error.
export async function readStream(row, verb, input) {
  const socket = await connect(row, verb, input);
  return new Promise((resolve, reject) => {
    const pieces = [];
    const decoder = new TextDecoder();
    socket.onmessage = (event) => pieces.push(decoder.decode(event.data, { stream: true }));
    socket.onclose = (event) => (event.code === 1000 ? resolve(pieces.join('')) : reject(new Error(event.reason || lost(event.code))));
  });
}

export const lost = (code) => (code === 1006
  ? 'the browser could not connect to the gateway; its certificate may not be trusted yet: weft dashboard on your own machine needs none'
  : 'the stream was cut');

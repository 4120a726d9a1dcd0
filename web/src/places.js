// Places for streams. A browser has six connections to a host over HTTP/1.1, for all of its windows together: four of them may hold a
// stream, and two stay free for requests. (A web socket is none of the six.) A window that holds one of four locks of the browser has a place.
import { signal } from '@preact/signals';

const PLACES = 4;
const known = navigator.locks; // there is none in plain HTTP and in old browsers: then each window has a place
export const hasPlace = signal(!known);
let leave = null; // gives the place back, or stops waiting for one

// Wait for any place: the first lock that is given counts, and the others are left to those who wait.
export function takePlace() {
  if (!known || leave) return;
  const waiting = new AbortController();
  const held = new Promise((resolve) => { leave = () => { waiting.abort(); resolve(); }; });
  const take = () => {
    if (waiting.signal.aborted) return undefined;
    waiting.abort();
    hasPlace.value = true;
    return held;
  };
  for (let place = 0; place < PLACES; place += 1) {
    known.request(`weft-stream-${place}`, { signal: waiting.signal }, take).catch((error) => {
      if (error.name !== 'AbortError') hasPlace.value = true; // this browser gives no locks to pages of this site
    });
  }
}

export function leavePlace() {
  leave?.();
  leave = null;
  hasPlace.value = !known;
}

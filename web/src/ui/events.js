// Events, newest first, each with its object.
import { html } from '../html.js';
import { moment } from '../format.js';
import { toObject } from '../state.js';

const about = (event) => event.object ?? event.about ?? event.subject ?? {};

export function EventList({ events, without }) {
  if (!events.length) return html`<p class="soft">No events yet.</p>`;
  return html`<ul class="list">${[...events].reverse().map((event) => {
    const ref = about(event);
    return html`<li key=${event.id}><div class="row"><time class="soft">${moment(event.at ?? event.time)}</time><b>${event.reason}</b>
      ${!without && ref.name && html`<a class="mono" href=${toObject(ref)}>${ref.kind}/${ref.name}</a>`}</div>
      <div>${event.message ?? event.detail}</div></li>`;
  })}</ul>`;
}

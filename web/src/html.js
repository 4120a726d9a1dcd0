// Templates: htm over preact. Text is always text here; nothing of the page sets inner HTML.
import htm from 'htm';
import { Fragment, h } from 'preact';

export const html = htm.bind(h);
export { Fragment };

// The one dialog that may be open: `open(component)` shows it; Escape, a click beside it and another page behind it close it.
import { useEffect, useRef } from 'preact/hooks';
import { html } from '../html.js';
import { dialog, route } from '../state.js';

export const open = (content) => { dialog.value = content; };
export const close = () => { dialog.value = null; };

export function Dialog() {
  const box = useRef(null);
  const content = dialog.value;
  useEffect(close, [route.value.path.slice(0, 4).join('/')]); // another tab is the same page
  useEffect(() => {
    if (content && !box.current.open) box.current.showModal();
    if (!content && box.current.open) box.current.close();
  }, [content]);
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onClose=${close} onClick=${(event) => { if (event.target === box.current) close(); }}>
    ${content}
  </dialog>`;
}

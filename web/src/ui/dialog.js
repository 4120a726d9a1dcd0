// The one dialog that may be open: `open(component)` shows it; Escape and a click beside it close it.
import { useEffect, useRef } from 'preact/hooks';
import { html } from '../html.js';
import { dialog } from '../state.js';

export const open = (content) => { dialog.value = content; };
export const close = () => { dialog.value = null; };

export function Dialog() {
  const box = useRef(null);
  const content = dialog.value;
  useEffect(() => {
    if (content && !box.current.open) box.current.showModal();
    if (!content && box.current.open) box.current.close();
  }, [content]);
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onClose=${close} onClick=${(event) => { if (event.target === box.current) close(); }}>
    ${content}
  </dialog>`;
}

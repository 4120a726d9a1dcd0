// Which columns a table shows: those that hold something, as many as there is place for. The least important come last.
import { useEffect, useLayoutEffect, useState } from 'preact/hooks';
import { project } from '../state.js';
import { NODE_CELLS } from './nodes.js';

const LEAST = 160; // pixels of a column that may be cut
// Ages, and how full a node is, aren't among a row's texts: the page writes them itself.
const isFilled = (row, head, cell) => head.type === 'age' || (row.kind === 'node' && NODE_CELLS[head.title]) || (row.cells[cell] && row.cells[cell] !== '–');

// Names of several projects may be equal, so the project stands beside them. A column that held something once stays. The same
// columns stay the same object: rows compare them.
const PROJECT = { title: 'PROJECT', align: 'left', textOf: (row) => row.project ?? '' };
let laid = {};
export function layOut(heads, rows) {
  const isMixed = !project.value && rows.some((row) => row.project && row.project !== rows[0].project) && !heads.some((head) => head.title === 'PROJECT');
  const before = laid.heads === heads ? laid.filled : new Set();
  const fresh = heads.filter((head, cell) => !before.has(head.title) && rows.some((row) => isFilled(row, head, cell)));
  if (laid.heads !== heads || laid.isMixed !== isMixed || fresh.length) {
    const filled = new Set([...before, ...fresh.map((head) => head.title)]);
    const all = heads.map((head, cell) => ({ ...head, textOf: (row) => row.cells[cell] }))
      .flatMap((column) => (isMixed && column.title === 'NAME' ? [column, PROJECT] : [column]));
    laid = { heads, isMixed, filled, all, columns: all.filter((column) => column === PROJECT || filled.has(column.title)) };
  }
  return laid;
}

// The columns that fit into the box, and how wide those that may be cut then are. All are laid out once, to be measured;
// while it is paused others stand there.
export function useFit(box, columns, isPaused) {
  const [fit, setFit] = useState({ of: null, columns, most: 0 });
  const [width, setWidth] = useState(0);
  const isMeasured = fit.of === columns && fit.width === width;
  useEffect(() => {
    if (!box.current) return undefined;
    const observer = new ResizeObserver(() => setWidth(box.current?.clientWidth ?? 0));
    observer.observe(box.current);
    return () => observer.disconnect();
  }, [Boolean(box.current), columns.length > 0]);
  useLayoutEffect(() => {
    if (isPaused || isMeasured || !box.current || !columns.length) return;
    const [choice, ...widths] = [...box.current.querySelectorAll('thead th')].map((cell) => cell.getBoundingClientRect().width);
    const place = box.current.clientWidth - choice;
    // What a narrow table keeps: which it is, how it is, and what is wrong.
    const rank = (at) => (columns[at].title === 'NAME' ? 0 : columns[at].type === 'phase' ? 1 : columns[at].title === 'NOTE' ? 2 : 3);
    const order = [...columns.keys()].sort((a, b) => rank(a) - rank(b) || a - b);
    const least = (at) => (columns[at].title === 'NOTE' ? Math.min(320, 0.42 * place) : columns[at].flexible ? LEAST : Infinity);
    const kept = new Set();
    let used = 0;
    for (const at of order) {
      used += Math.min(least(at), widths[at]);
      if (used > place && kept.size) break;
      kept.add(at);
    }
    setFit({ of: columns, width, columns: columns.filter((_, at) => kept.has(at)), most: Math.max(80, findMost([...kept], columns, widths, place)) });
  });
  return isMeasured ? fit : { columns, most: 0 };
}

// How wide those that may be cut are: they share what the others leave, and who needs less than that leaves its rest to the others.
function findMost(kept, columns, widths, place) {
  let rest = place - kept.reduce((sum, at) => sum + (columns[at].flexible ? 0 : widths[at]), 0);
  const wanted = kept.filter((at) => columns[at].flexible).map((at) => widths[at]).sort((a, b) => a - b);
  while (wanted.length > 1 && wanted[0] <= rest / wanted.length) rest -= wanted.shift();
  return Math.floor(rest / Math.max(1, wanted.length));
}

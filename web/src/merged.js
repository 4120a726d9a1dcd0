// Lines of several workloads, from their nodes' stores of logs, merged by time; only the newest are kept. What a workload printed is
// hostile: it is bounded here, and without control characters.
import { follow } from './tabs/stream.js';

export const MOST_LINES = 5_000;
const MOST_MESSAGE = 4_000; // characters
const MOST_READ = 1 << 20; // characters of one line as it comes
const PAUSE = 200; // milliseconds in which what comes is sorted and shown together
const UNSEEN = /[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g; // a tab stays

// Reads `rows` as `input` of the verb says; `onChange({lines: [{number, time, at, message}], states: [{words, isBad}]})`, with `at` and
// the states in the order of the rows. Returns what ends it.
export function readMerged(rows, input, onChange) {
  const states = rows.map(() => ({ words: 'reading…', isBad: false }));
  const stops = [];
  let lines = [];
  let fresh = [];
  let numbered = 0;
  let timer = 0;
  let isOver = false;

  const tell = () => {
    timer ||= setTimeout(() => {
      timer = 0;
      keep();
      onChange({ lines, states: [...states] });
    }, PAUSE);
  };
  const keep = () => {
    if (fresh.length) lines = [...lines, ...fresh].sort((one, other) => (one.time < other.time ? -1 : one.time > other.time ? 1 : one.number - other.number)).slice(-MOST_LINES);
    fresh = [];
  };
  const say = (at, words, isBad = false) => {
    if (isOver) return;
    states[at] = { words, isBad };
    tell();
  };
  const take = (at, text, known) => {
    let given = null;
    try { given = JSON.parse(text); } catch { /* a line that was cut */ }
    if (typeof given?.message !== 'string' || typeof given.time !== 'string') return;
    const { message } = given;
    const shown = message.length > MOST_MESSAGE ? `${message.slice(0, MOST_MESSAGE)}…` : message;
    const line = { number: (numbered += 1), at, time: plain(given.time.slice(0, 40)), message: plain(shown) };
    if (!known.has(keyOf(line))) fresh.push(line);
    if (fresh.length > 2 * MOST_LINES) keep();
  };

  rows.forEach((row, at) => {
    let rest = '';
    let known = new Set(); // of a connection that is made again: what came by those before
    const stop = follow(row, 'logs', { ...input, aggregate: true, tail: MOST_LINES }, {
      onOpen: () => say(at, input.follow ? 'follows' : 'reading…'),
      onText: (text, isFirst) => {
        if (isFirst) { rest = ''; keep(); known = new Set(lines.filter((line) => line.at === at).map(keyOf)); }
        const pieces = (rest + text).split('\n');
        rest = pieces.pop();
        if (rest.length > MOST_READ) rest = '';
        for (const piece of pieces) if (piece) take(at, piece, known);
        tell();
      },
      onLost: (words) => say(at, plain(words), true),
      onEnd: (words) => say(at, plain(words) || (input.follow ? 'has ended' : ''), Boolean(words)),
    });
    stops.push(stop);
  });
  return () => {
    isOver = true;
    clearTimeout(timer);
    for (const stop of stops) stop();
  };
}

const keyOf = (line) => `${line.time} ${line.message}`;
const plain = (text) => text.replace(UNSEEN, '?');

// Numbers, sizes, times and commands as people read them.

const SIZES = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
export function size(bytes) {
  if (bytes == null || Number.isNaN(bytes)) return '–';
  let place = 0;
  let left = Math.abs(bytes);
  while (left >= 1024 && place < SIZES.length - 1) { left /= 1024; place += 1; }
  return `${bytes < 0 ? '−' : ''}${left >= 100 || place === 0 ? Math.round(left) : left.toFixed(1)} ${SIZES[place]}`;
}
export const number = (value, digits = 1) => (value == null ? '–' : Number(value.toFixed(digits)).toLocaleString('en'));
// A kind in the plural, as people say it: VMs, backup policies.
export const many = (kind) => `${kind.title.replace(/([^aeiou])y$/, '$1ie')}s`;
export const share = (part, whole) => (whole > 0 && part != null ? part / whole : 0);
export const percent = (part) => `${Math.round(part * 100)} %`;

export function age(seconds) {
  if (seconds == null || Number.isNaN(seconds)) return '–';
  const left = Math.max(0, seconds);
  if (left < 60) return `${Math.floor(left)} s`;
  if (left < 3600) return `${Math.floor(left / 60)} min`;
  if (left < 172800) return `${Math.floor(left / 3600)} h`;
  return `${Math.floor(left / 86400)} d`;
}
// As `weft trace` writes it: 0.40 ms, 12 ms, 1.84 s, 2m05s.
export function duration(nanoseconds) {
  const milliseconds = nanoseconds / 1e6;
  if (milliseconds < 999.5) return `${milliseconds.toFixed(milliseconds < 1 ? 2 : milliseconds < 10 ? 1 : 0)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  return `${Math.floor(seconds / 60)}m${String(Math.floor(seconds % 60)).padStart(2, '0')}s`;
}
// A length of time as a spec has it: 20 s, 5 min, 90 s, 7 d.
export function span(seconds) {
  const [unit, words] = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']].find(([each]) => seconds >= each && seconds % each === 0) ?? [1, 's'];
  return `${number(seconds / unit, 2)} ${words}`;
}
export const clock = (at) => new Date(at * 1000).toLocaleTimeString('en-GB');
export const moment = (at) => {
  const when = new Date(at * 1000);
  const day = when.toDateString() === new Date().toDateString() ? '' : `${when.toLocaleDateString('sv')} `;
  return day + when.toLocaleTimeString('en-GB');
};

// Of a line, as its node wrote it: 15:59:01.250, with the day if that is not today's; what is no time stays.
export function instant(written) {
  const when = new Date(written);
  return Number.isNaN(when.getTime()) ? written : `${moment(when.getTime() / 1000)}.${String(when.getMilliseconds()).padStart(3, '0')}`;
}

// A value in the unit that a sample has.
export function inUnit(value, unit) {
  if (value == null) return '–';
  if (unit === 'bytes') return size(value);
  if (unit === 'bytes/s' || unit === 'B/s') return `${size(value)}/s`;
  if (unit === 'cores') return `${number(value, 2)} cores`;
  return `${number(value, 2)} ${unit ?? ''}`.trim();
}

// A word as a shell takes it.
export const quote = (word) => (/^[A-Za-z0-9_./:@=,+-]+$/.test(word) ? word : `'${String(word).replaceAll("'", "'\\''")}'`);

// The command that does what a click does: weft vm stop web -p shop
export function command(kind, verb, name, { project, flags = {} } = {}) {
  const words = ['weft', kind.name, verb, ...(name ? [name] : [])];
  if (kind.scope === 'project' && project && project !== 'default') words.push('-p', project);
  for (const [flag, value] of Object.entries(flags)) {
    if (value === undefined || value === '' || value === false) continue;
    words.push(`--${flag.replaceAll('_', '-')}`);
    if (value !== true) words.push(String(value));
  }
  return words.map(quote).join(' ');
}

// A small YAML writer for plain JSON data, as `weft get -o yaml` prints it.
export function yaml(value, indent = '') {
  if (value === null || value === undefined) return 'null';
  if (typeof value === 'string') return text(value, indent);
  if (typeof value !== 'object') return String(value);
  const deeper = `${indent}  `;
  if (Array.isArray(value)) {
    if (!value.length) return '[]';
    return value.map((item) => `\n${indent}- ${yaml(item, deeper).replace(/^\n\s*/, '')}`).join('');
  }
  const keys = Object.keys(value);
  if (!keys.length) return '{}';
  return keys.map((key) => {
    const inner = yaml(value[key], deeper);
    return `\n${indent}${text(key, '')}:${inner.startsWith('\n') ? inner : ` ${inner}`}`;
  }).join('');
}
function text(value, indent) {
  if (value.includes('\n')) return `|${value.endsWith('\n') ? '' : '-'}\n${value.replace(/\n$/, '').split('\n').map((line) => `${indent}${line}`).join('\n')}`;
  if (/^[A-Za-z_/][A-Za-z0-9_./ -]*$/.test(value) && !/^(true|false|null|yes|no|on|off)$/i.test(value) && !value.endsWith(' ')) return value;
  return JSON.stringify(value);
}

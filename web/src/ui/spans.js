// The spans of a trace as a tree, with clocks made to agree and the critical path found, by the rules of cli/trace/tree.py. Pure, and
// imports nothing: a test holds it against those. Spans may be of anybody: parents may be missing, form a circle or nest without end.

const MOST_DEPTH = 40;
const SERVER = 2; // kinds, as OTLP numbers them
const CLIENT = 3;
const LEAST_GAP = 0.02; // of all
const LONGEST = 3;

// Of an answer in OTLP's form; `now` (unix seconds) is where what isn't over is at. Times are nanoseconds after the first begin,
// since a float can't hold those after 1970: {trace, roots, begin, end, count, beganAt (unix seconds)}.
export function readTree(document, now) {
  const nodes = new Map();
  let trace = '';
  let base = null;
  const found = (document.resourceSpans ?? []).flatMap((resource) => {
    const process = String(valuesOf(resource.resource?.attributes).get('service.name') ?? '?').replace(/^weft\//, '');
    return (resource.scopeSpans ?? []).flatMap((scope) => (scope.spans ?? []).map((span) => [span, process]));
  });
  for (const [span] of found) {
    const begin = BigInt(span.startTimeUnixNano || 0);
    if (base === null || begin < base) base = begin;
    trace = span.traceId ?? '';
  }
  base ??= 0n;
  for (const [span, process] of found) if (!nodes.has(span.spanId)) nodes.set(span.spanId, readNode(span, process, base));
  const roots = arrange(nodes);
  for (const root of roots) agree(root);
  const all = [...nodes.values()];
  finish(all, Number(BigInt(Math.round(now * 1000)) * 1_000_000n - base));
  for (const node of all) node.children.sort((a, b) => a.begin - b.begin || a.end - b.end);
  roots.sort((a, b) => a.begin - b.begin || b.end - a.end);
  findLast(roots);
  const begin = all.reduce((least, node) => Math.min(least, node.begin), all[0]?.begin ?? 0);
  const end = all.reduce((most, node) => Math.max(most, node.end), all[0]?.end ?? 0);
  for (const root of roots) mark(root);
  return { trace, roots, begin, end, count: all.length, beganAt: Number(base / 1_000_000n) / 1000 + begin / 1e9 };
}

// Each [depth, node], parents first.
export function* walk(tree) {
  const stack = tree.roots.map((root) => [0, root]).reverse();
  while (stack.length) {
    const [depth, node] = stack.pop();
    yield [depth, node];
    for (let at = node.children.length - 1; at >= 0; at -= 1) stack.push([depth + 1, node.children[at]]);
  }
}

// What is drawn, line by line: spans, and before one what it was waited for, if that is long enough to be seen.
export function listRows(tree) {
  const rows = [];
  const total = Math.max(1, tree.end - tree.begin);
  for (const [depth, node] of walk(tree)) {
    if (node.waited >= total * LEAST_GAP && node.waited >= 1e6) rows.push({ key: `${node.id} wait`, depth, node, isWait: true, begin: node.begin - node.waited, end: node.begin });
    rows.push({ key: node.id, depth, node, isWait: false, begin: node.begin, end: node.end });
  }
  return rows;
}

// Where the time of the critical path went: [what, nanoseconds], the longest first.
export function findLongest(tree) {
  const spent = new Map();
  const add = (key, took) => { if (took) spent.set(key, (spent.get(key) ?? 0) + took); };
  for (const [, node] of walk(tree)) {
    add(`${node.name} (${node.process})`, node.own);
    add(`waiting for ${node.name}`, node.waited);
  }
  return [...spent].sort((a, b) => b[1] - a[1]).slice(0, LONGEST);
}

// A name without the part of a request's path that is the same everywhere.
export const shorten = (name) => name.replace(/^([A-Z]+) \/v1\/(?:projects\/[^/]+\/)?/, '$1 ');

function valuesOf(attributes) {
  return new Map((attributes ?? []).filter((one) => one.value).map((one) => [one.key, Object.values(one.value)[0] ?? '']));
}

function readNode(span, process, base) {
  const values = valuesOf(span.attributes);
  const about = String(values.get('weft.object') ?? '');
  values.delete('weft.object');
  const end = BigInt(span.endTimeUnixNano || 0);
  const over = end !== 0n;
  return {
    id: span.spanId, parent: span.parentSpanId ?? '', name: String(span.name ?? ''), process, about,
    begin: Number(BigInt(span.startTimeUnixNano || 0) - base), end: over ? Number(end - base) : -Infinity, over,
    kind: Number(span.kind || 1), error: String(span.status?.message ?? ''), attributes: [...values],
    children: [], critical: false, own: 0, waited: 0, last: 0,
  };
}

function arrange(nodes) {
  const below = new Map();
  const isRoot = (node) => !nodes.has(node.parent) || node.parent === node.id;
  for (const node of nodes.values()) {
    if (isRoot(node)) continue;
    if (!below.has(node.parent)) below.set(node.parent, []);
    below.get(node.parent).push(node);
  }
  const ordered = [...nodes.values()].sort((a, b) => a.begin - b.begin);
  const roots = [];
  const seen = new Set();
  // Those whose parent isn't there first; what is left then is a circle, of which the earliest is the root.
  for (const node of [...ordered.filter(isRoot), ...ordered]) {
    if (seen.has(node.id)) continue;
    seen.add(node.id);
    roots.push(node);
    const stack = [[node, node, 1]];
    while (stack.length) {
      const [above, holder, depth] = stack.pop(); // too deep a child is held by an ancestor
      for (const child of below.get(above.id) ?? []) {
        if (seen.has(child.id)) continue;
        seen.add(child.id);
        holder.children.push(child);
        stack.push([child, depth >= MOST_DEPTH ? holder : child, depth + 1]);
      }
    }
  }
  return roots;
}

// Shift what another machine's clock has put before its cause, or beside the request that it answers.
function agree(root) {
  const stack = [root];
  while (stack.length) {
    const above = stack.pop();
    for (const child of above.children) {
      if (child.process !== above.process) fit(child, above);
      child.begin = Math.max(child.begin, above.begin);
      if (child.over) child.end = Math.max(child.end, child.begin);
      stack.push(child);
    }
  }
}

function fit(child, above) {
  const answers = child.kind === SERVER && above.kind === CLIENT && above.over && child.over;
  if (answers && !(above.begin <= child.begin && child.end <= above.end)) {
    const spare = (above.end - above.begin) - (child.end - child.begin);
    shift(child, above.begin + Math.floor(Math.max(0, spare) / 2) - child.begin);
    child.end = Math.min(child.end, above.end);
  } else if (child.begin < above.begin) shift(child, above.begin - child.begin);
}

function shift(node, by) {
  const stack = [node];
  while (stack.length) {
    const one = stack.pop();
    one.begin += by;
    one.end += by; // -Infinity, of one that isn't over, stays
    for (const child of one.children) stack.push(child);
  }
}

// Let what isn't over last until the present.
function finish(nodes, now) {
  let last = nodes.reduce((most, node) => Math.max(most, node.begin, node.end), 0);
  if (nodes.some((node) => !node.over)) last = Math.max(last, now);
  for (const node of nodes) if (!node.over) node.end = last;
}

function findLast(roots) {
  const ordered = [];
  const stack = [...roots];
  while (stack.length) {
    const node = stack.pop();
    ordered.push(node);
    for (const child of node.children) stack.push(child);
  }
  for (const node of ordered.reverse()) node.last = node.children.reduce((most, child) => Math.max(most, child.last), node.end);
}

// Find the critical path, from the end: what ended last, before that what ended last before it began, and so on.
function mark(root) {
  const stack = [[root, root.last]];
  while (stack.length) {
    const [node, until] = stack.pop();
    let at = until;
    let later = null;
    node.critical = true;
    for (const child of [...node.children].sort((a, b) => b.last - a.last)) {
      if (child.begin >= at && child.last > at) continue;
      const ends = Math.min(child.last, at);
      spend(node, ends, at, later);
      stack.push([child, ends]);
      at = Math.min(at, child.begin);
      later = child;
      if (at <= node.begin) break;
    }
    spend(node, Math.min(node.begin, at), at, later);
  }
}

// Between two parts of a node: its own time as long as it lasted, and after that what the `later` part was waited for.
function spend(node, begin, end, later) {
  const own = Math.max(0, Math.min(end, node.end) - Math.max(begin, node.begin));
  node.own += own;
  if (later) later.waited += Math.max(0, end - begin - own);
}

// The kinds with the fields of their specs and of their verbs' input, which most pages don't need: read once, for the first form.
import { useEffect, useState } from 'preact/hooks';
import { get } from './api.js';
import { noticeOf } from './state.js';
import { returns } from './stream.js';

let all = null;
export function describeKinds() {
  all ??= get('/v1/kinds').then((known) => new Map(known.items.map((kind) => [kind.name, kind])), (error) => { all = null; throw error; });
  return all;
}

// One kind; undefined until it is read.
export function useDescribed(name) {
  const [found, setFound] = useState();
  useEffect(() => {
    let isOver = false;
    describeKinds().then((kinds) => { if (!isOver) setFound(kinds.get(name)); }, noticeOf);
    return () => { isOver = true; };
  }, [name, returns.value]);
  return found?.name === name ? found : undefined;
}

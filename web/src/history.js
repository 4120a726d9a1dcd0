// Series of the history (PromQL) over the last hour, for small charts. Without a database, or the right to read it, there are none.
import { useEffect, useState } from 'preact/hooks';
import { get, query } from './api.js';

const SPAN = 3600; // seconds
const STEP = 60;
const AGAIN = 30_000; // milliseconds

// [{labels, points: [[seconds, value], …]}]; null until they are read.
export function useHistory(expression) {
  const [found, setFound] = useState(null);
  useEffect(() => {
    let isOver = false;
    let timer = 0;
    const read = async () => {
      const end = Math.floor(Date.now() / 1000);
      try {
        const answer = await get(`/api/v1/query_range?${query({ query: expression, start: end - SPAN, end, step: STEP })}`);
        if (!isOver) setFound((answer.data?.result ?? []).map(({ metric, values }) => ({ labels: metric, points: values.map(([at, value]) => [at, Number(value)]) })));
      } catch { if (!isOver) setFound((before) => before ?? []); }
      if (!isOver) timer = setTimeout(read, AGAIN);
    };
    if (expression) read();
    return () => { isOver = true; clearTimeout(timer); };
  }, [expression]);
  return found;
}

// Whole lists, for pages that put several kinds together.
import { get, query } from './api.js';
import { kinds, may, placesOf } from './state.js';

export const MOST = 500; // objects of a kind that are read for an overview

// All objects of a kind that the person may list, up to MOST of each place; and whether there were more.
export async function readAll(name, more = {}) {
  const kind = kinds.value.get(name);
  if (!kind) return { items: [], isCut: false };
  const places = kind.scope === 'project' ? placesOf(`${name}:list`) : may(`${name}:list`, '') ? [''] : [];
  const pages = await Promise.all(places.map((place) => get(`/v1/${place && `projects/${encodeURIComponent(place)}/`}${kind.plural}?${query({ ...more, limit: MOST })}`).catch(() => ({ items: [] }))));
  return { items: pages.flatMap((page) => page.items), isCut: pages.some((page) => page.continue) };
}

"""A list of one instant, page by page; objects stay raw JSON until someone reads them.

While one page is read, the server makes the next, so a reader of pages works in the meantime."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from weft.client.answer import ClientAnswer, raise_problem
from weft.client.http import Http
from weft.objects.errors import CursorGone, WeftError

Object = dict[str, Any]
Read = Callable[[Sequence[msgspec.Raw]], Any]
_PAGE = 1_000
_TRIES = 3


class Listing(msgspec.Struct, frozen=True, dict=True):
    """Objects of one instant, each as JSON; a watch from ``cursor`` misses no later change. ``pages`` are a reader's results for
    each page, if there was one."""

    raws: list[msgspec.Raw]
    cursor: str
    pages: list[Any] = []

    @functools.cached_property
    def items(self) -> list[Object]:
        """The objects as plain data."""
        return read_objects(self.raws)


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    cursor: str
    next: str | None = msgspec.field(name="continue", default=None)


_pages = msgspec.json.Decoder(_Page)


def read_objects(raws: Sequence[msgspec.Raw]) -> list[Object]:
    """Objects as plain data."""
    decode = msgspec.json.Decoder(Object).decode
    return [decode(raw) for raw in raws]


def fetch_list(http: Http, path: str, query: Mapping[str, str], read: Read | None = None) -> Listing:
    """All objects of the collection at ``path`` that ``query`` selects; ``read`` gets those of each page. Raises the server's
    error."""
    for _ in range(_TRIES):
        try:
            return _fetch_pages(http, path, {**query, "limit": str(_PAGE)}, read)
        except CursorGone:
            continue  # so much changed between two pages that the first one's instant is forgotten
    return _fetch_pages(http, path, {**query, "limit": "0"}, read)


def _fetch_pages(http: Http, path: str, query: Mapping[str, str], read: Read | None) -> Listing:
    page = _decode(path, http.request("GET", f"{path}?{urlencode(query)}"))
    cursor = page.cursor
    raws: list[msgspec.Raw] = []
    pages: list[Any] = []
    while True:
        coming = http.begin(f"{path}?{urlencode({**query, 'continue': page.next})}") if page.next else None
        raws += page.items
        if read is not None:
            pages.append(read(page.items))
        if coming is None:
            return Listing(raws, cursor, pages)
        page = _decode(path, coming())


def _decode(path: str, answer: ClientAnswer) -> _Page:
    raise_problem(answer)
    try:
        return _pages.decode(answer.body)
    except msgspec.DecodeError as problem:
        raise WeftError(f"GET {path}: the server's answer is not a list: {problem}") from problem

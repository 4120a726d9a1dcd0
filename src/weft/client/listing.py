"""A list of one instant, page by page; objects stay as they came until someone looks into them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from weft.client.answer import raise_problem
from weft.client.http import Http
from weft.objects.errors import CursorGone, WeftError

Object = dict[str, Any]
_PAGE = 1_000
_TRIES = 3


class Listing(msgspec.Struct, frozen=True, dict=True):
    """Objects of one instant, each as JSON; a watch from ``cursor`` misses nothing that comes after it."""

    raws: list[msgspec.Raw]
    cursor: str

    @functools.cached_property
    def items(self) -> list[Object]:
        """The objects as plain data."""
        decode = msgspec.json.Decoder(Object).decode
        return [decode(raw) for raw in self.raws]


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    cursor: str
    next: str | None = msgspec.field(name="continue", default=None)


_pages = msgspec.json.Decoder(_Page)


def fetch_list(http: Http, path: str, query: Mapping[str, str]) -> Listing:
    """All objects of the collection at ``path`` that ``query`` selects. Raises what the server answered."""
    for _ in range(_TRIES):
        try:
            return _fetch_pages(http, path, {**query, "limit": str(_PAGE)})
        except CursorGone:
            continue  # so much changed between two pages that the first one's instant is forgotten
    return _fetch_pages(http, path, {**query, "limit": "0"})


def _fetch_pages(http: Http, path: str, query: Mapping[str, str]) -> Listing:
    page = _fetch(http, path, query)
    raws, cursor = page.items, page.cursor
    while page.next:
        page = _fetch(http, path, {**query, "continue": page.next})
        raws += page.items
    return Listing(raws, cursor)


def _fetch(http: Http, path: str, query: Mapping[str, str]) -> _Page:
    answer = http.request("GET", f"{path}?{urlencode(query)}")
    raise_problem(answer)
    try:
        return _pages.decode(answer.body)
    except msgspec.DecodeError as problem:
        raise WeftError(f"GET {path}: the server's answer is not a list: {problem}") from problem

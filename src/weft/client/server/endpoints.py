"""The servers of a fabric that a client may ask: the one that it asks now, and those to try when that one doesn't answer.

May be used from several threads. Answers name the servers that serve; what the client was given stays among them."""

from __future__ import annotations

import random
import threading
from typing import NamedTuple

from weft.client.context import Context
from weft.client.tls import split_server
from weft.objects.errors import WeftError
from weft.objects.identity import SERVER_NAME

HEADER = "weft-servers"  # of answers of a server that isn't the only one: the URLs of all that serve
AWAY_HEADER = "weft-servers-away"  # of answers in which the part of these servers is missing: their names
JOURNAL_HEADER = "weft-journal"  # of answers with events: whose ids they have
MOST = 9
CONNECT_SECONDS = 1.0  # to the first of several
SECOND_SECONDS = 5.0  # to each of the others


class Endpoint(NamedTuple):
    url: str
    host: str
    port: int
    name: str  # in its certificate


class Endpoints:
    """Those that ``context`` has, the first of which is its ``server``."""

    def __init__(self, context: Context) -> None:
        host, port = split_server(context.server)
        self._given = Endpoint(context.server.rstrip("/"), host, port, context.server_name or host)
        self._by_fabric = bool(context.ca)  # then each server's certificate has the fabric's name, too
        self._lock = threading.Lock()
        self._named = ""
        self._all = [self._given]
        self._add(context.others)

    def in_turn(self) -> list[Endpoint]:
        """All of them, first the one that answered last."""
        with self._lock:
            return list(self._all)

    def prefer(self, endpoint: Endpoint) -> None:
        """Ask ``endpoint`` first from now on: it has answered."""
        with self._lock:
            if self._all[0] != endpoint:
                self._all = [endpoint, *(one for one in self._all if one != endpoint)]

    def leave(self) -> bool:
        """Ask the next one first from now on: something else at the first one doesn't answer. Returns whether there is another."""
        with self._lock:
            self._all.append(self._all.pop(0))
            return len(self._all) > 1

    @property
    def are_several(self) -> bool:
        return len(self._all) > 1

    def learn(self, named: str) -> list[str] | None:
        """Take the URLs that an answer names; those beside the given one, or None if they are as they were."""
        if named == self._named:
            return None
        with self._lock:
            self._named, first = named, self._all[0]
            before = {one.url for one in self._all}
            self._all = list(dict.fromkeys((first, self._given)))
            self._add(named.split(","))
            now = [one.url for one in self._all]
        return [url for url in now if url != self._given.url] if set(now) != before else None

    def _add(self, urls: list[str]) -> None:
        """Take ``urls`` in an order of this client's own: those of a server that dies don't all go on at the same one."""
        urls = random.sample(urls, len(urls))
        known = {one.url for one in self._all}
        for url in urls:
            try:
                host, port = split_server(url)
            except WeftError:
                continue  # of a later release
            place = url.rstrip("/")
            if place not in known and len(self._all) < MOST:
                self._all.append(Endpoint(place, host, port, SERVER_NAME if self._by_fabric else host))
                known.add(place)

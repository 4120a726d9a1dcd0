"""Follows objects over HTTP: by one watch, or for ever, across lost connections, restarts and forgotten history.

Reads the API; decides when to connect again and when to list again. Woken by the server's lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from weft.client.answer import Stream
from weft.client.http import Http
from weft.client.listing import Listing, fetch_list
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.errors import (
    CursorGone,
    Forbidden,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    TimedOut,
    Unavailable,
    WeftError,
    error_from_dict,
)

Object = dict[str, Any]
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_MOST_DOUBLINGS = 10
_PERMANENT = (NotAuthenticated, Forbidden, NotFound, InvalidInput)
_NOTHING = msgspec.Raw(b"{}")


class WatchEvent(msgspec.Struct):
    """One line of a watch. ``cursor`` resumes right after it, empty in the middle of a list. ``synced``: all existing objects
    have been delivered; it and ``bookmark`` have no object. ``report``: a bookmark by which a node hears that its report is
    awaited."""

    type: Literal["put", "delete", "bookmark", "synced", "error"]
    cursor: str = ""
    raw: msgspec.Raw = msgspec.field(name="object", default=_NOTHING)
    error: dict[str, Any] = {}
    report: bool = False

    @property
    def object(self) -> Object:
        """The object as plain data; of a delete event, as it was last."""
        return msgspec.json.decode(self.raw, type=dict[str, Any])

    @property
    def envelope(self) -> Envelope:
        """The object with spec, status and report still raw, for readers of only one of them."""
        return decode_envelope(self.raw)


_decoder = msgspec.json.Decoder(WatchEvent)


def follow_once(http: Http, path: str, cursor: str, query: Mapping[str, str]) -> Iterator[WatchEvent]:
    """The events of one watch request. Raises the server's error, Unavailable when the connection is lost."""
    with _open(http, path, cursor, query) as stream:
        for line in stream.lines():
            yield _read(line)


def follow_forever(
    http: Http,
    path: str,
    query: Mapping[str, str],
    on_trouble: Callable[[WeftError], None] | None = None,
    remaining_seconds: Callable[[], float] | None = None,
    rest: Callable[[int], None] | None = None,
) -> Iterator[WatchEvent]:
    """All objects, ``synced``, then all changes, across lost connections; see ``Client.watch_forever``.
    ``rest`` waits after so many tries that brought nothing; without it the pauses grow to two seconds.

    Raises TimedOut once ``remaining_seconds`` gives no more."""
    known: dict[tuple[str | None, str], Object] = {}
    cursor: str | None = None
    tries = 0
    while not http.closed.is_set():
        try:
            if cursor is None:
                listing = fetch_list(http, path, query)
                yield from _list_events(known, listing)
                cursor = listing.cursor
            with _open(http, path, cursor, query) as stream:
                for line in _lines(stream, remaining_seconds):
                    event = _read(line)
                    cursor, tries = event.cursor, 0
                    if event.type != "bookmark":
                        _remember(known, event)
                        yield event
                    elif event.report:
                        yield event
        except CursorGone:
            cursor = None
        except _PERMANENT:
            raise
        except TimedOut:
            raise
        except WeftError as trouble:
            if http.closed.is_set():
                return
            if on_trouble is not None:
                on_trouble(trouble)
        _check_time(remaining_seconds)
        tries += 1
        if rest is not None:
            rest(tries)
        else:
            http.closed.wait(min(_FIRST_PAUSE_SECONDS * 2 ** (min(tries, _MOST_DOUBLINGS) - 1), _LONGEST_PAUSE_SECONDS))


def _open(http: Http, path: str, cursor: str, query: Mapping[str, str]) -> Stream:
    return http.stream("GET", f"{path}?{urlencode({**query, 'watch': '1', 'cursor': cursor})}")


def _lines(stream: Stream, remaining_seconds: Callable[[], float] | None) -> Iterator[bytes]:
    if remaining_seconds is None:
        yield from stream.lines()
        return
    lines = stream.lines()
    while True:
        _check_time(remaining_seconds)
        stream.limit_silence(max(0.05, remaining_seconds()))
        try:
            line = next(lines, None)
        except Unavailable:
            _check_time(remaining_seconds)
            raise
        if line is None:
            return
        yield line


def _check_time(remaining_seconds: Callable[[], float] | None) -> None:
    if remaining_seconds is not None and remaining_seconds() <= 0:
        raise TimedOut("the time is up")


def _read(line: bytes) -> WatchEvent:
    try:
        event = _decoder.decode(line)
    except msgspec.DecodeError as problem:
        raise Unavailable(f"the server sent a line that is not an event: {problem}") from problem
    if event.type == "error":
        raise error_from_dict(event.error)
    return event


def _list_events(known: dict[tuple[str | None, str], Object], listing: Listing) -> Iterator[WatchEvent]:
    gone = dict(known)
    known.clear()
    for raw in listing.raws:
        event = WatchEvent("put", raw=raw)
        gone.pop(_remember(known, event), None)
        yield event
    for identity in gone.values():
        yield WatchEvent("delete", raw=msgspec.Raw(msgspec.json.encode(identity)))
    yield WatchEvent("synced", listing.cursor)


class _Identity(msgspec.Struct):
    kind: str
    name: str
    uid: str
    project: str | None = None


_identities = msgspec.json.Decoder(_Identity)


def _remember(known: dict[tuple[str | None, str], Object], event: WatchEvent) -> tuple[str | None, str]:
    """Update the known objects by ``event``; the project and name of its object."""
    identity = _identities.decode(event.raw)
    at = (identity.project, identity.name)
    if event.type == "delete":
        known.pop(at, None)
    else:
        known[at] = msgspec.structs.asdict(identity)
    return at

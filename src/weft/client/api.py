"""The fabric's API as Python: one method for each action on objects of any kind. Blocking; usable from threads.

Objects are plain dicts, as the API gives them. A kind is any word the registry knows (``vm``, ``vms``, ``VM``)."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from weft.client.answer import raise_problem
from weft.client.context import Context, find_context
from weft.client.http import Http
from weft.client.listing import Listing, Read, fetch_list
from weft.client.server.endpoints import JOURNAL_HEADER
from weft.client.watch import WatchEvent, follow_forever, follow_once
from weft.contracts.clock import Clock, SystemClock
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput, TimedOut, Unavailable, WeftError

Object = dict[str, Any]
Objects = list[Object]


class Client:
    """One fabric's API.

    >>> client = Client()                                        # the context as the weft command finds it
    >>> client.create({"kind": "vm", "name": "web", "spec": {"image": "tiny"}})
    >>> client.wait("vm", "web", lambda vm: vm is not None and vm["status"]["phase"] == "Running", timeout_seconds=60)
    >>> for event in client.watch_forever("vm"):
    ...     print(event.type, event.object["name"])

    ``patience_seconds`` is how long a request is retried while no server answers. Every method raises the WeftError the
    server answered with, Unavailable when it can't be reached, NotAuthenticated when it isn't the one expected.
    """

    def __init__(
        self,
        context: Context | None = None,
        *,
        project: str | None = None,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 0.0,
        clock: Clock | None = None,
        most_answer_bytes: int | None = None,
        most_seconds: float | None = None,
    ) -> None:
        self.context = context or find_context()
        self.project = project or self.context.project
        self._clock = clock or SystemClock()
        self.http = Http(
            self.context,
            timeout_seconds=timeout_seconds,
            patience_seconds=patience_seconds,
            clock=self._clock,
            most_answer_bytes=most_answer_bytes,
            most_seconds=most_seconds,
        )

    def list(
        self,
        kind: str,
        *,
        project: str | None = None,
        all_projects: bool = False,
        labels: str = "",
        fields: str = "",
        query: Mapping[str, str] | None = None,
        read: Read | None = None,
    ) -> Listing:
        """All objects of ``kind`` that match both selectors, in key order, as of one instant. ``read`` gets those of each page
        while the server makes the next; its results are in the listing's ``pages``."""
        path = self.path(kind, project=project, all_projects=all_projects)
        return fetch_list(self.http, path, _query(labels, fields, query), read)

    def get(self, kind: str, name: str, *, project: str | None = None) -> Object:
        """The whole object. Raises NotFound."""
        return self._call("GET", self.path(kind, name, project=project))

    def create(
        self, manifest: Mapping[str, Any], *, dry_run: bool = False, idempotency_key: str | None = None
    ) -> Object:
        """Create the object of ``manifest`` (kind, name, project?, labels?, spec) and return it as stored.

        Raises AlreadyExists, InvalidInput … A repeat with the same ``idempotency_key`` creates nothing new."""
        return self._call(
            "POST",
            self.path(_kind_of(manifest), project=manifest.get("project")),
            manifest,
            dry_run=dry_run,
            key=idempotency_key,
        )

    def put(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """Create the object, or change labels and spec of the existing one to those of ``manifest``. With ``generation``
        in it: only if nobody changed it meanwhile; with ``uid``: only that very one; else StaleRevision."""
        path = self.path(_kind_of(manifest), str(manifest.get("name", "")), project=manifest.get("project"))
        return self._call("PUT", path, manifest, dry_run=dry_run)

    def patch(self, kind: str, name: str, changes: Mapping[str, Any], *, project: str | None = None) -> Object:
        """Merge ``changes`` (labels, spec, generation?) into the object; None takes a field away (RFC 7396)."""
        return self._call("PATCH", self.path(kind, name, project=project), changes)

    def delete(self, kind: str, name: str, *, project: str | None = None, uid: str = "", force: bool = False) -> Object:
        """Begin to delete; the object as it was last, with ``deleting_since`` while something still holds it. With
        ``uid``: only this very one, else StaleRevision. ``force``: a node that is lost, with the places on it."""
        path = self.path(kind, name, project=project)
        query = {**({"uid": uid} if uid else {}), **({"force": "1"} if force else {})}
        return self._call("DELETE", f"{path}?{urlencode(query)}" if query else path)

    def verb(
        self,
        kind: str,
        name: str,
        verb: str,
        given: Any = None,
        *,
        project: str | None = None,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> Object:
        """Carry out a verb of the kind with its input: the changed object, or for stream verbs ticket and address. A repeat with
        the same ``idempotency_key`` does it no second time."""
        path = f"{self.path(kind, name, project=project)}:{quote(verb, safe='')}"
        return self._call("POST", path, {} if given is None else given, dry_run=dry_run, key=idempotency_key)

    def batch(self, kind: str, manifests: Sequence[Mapping[str, Any]], *, project: str | None = None) -> Objects:
        """Create up to 1,000 objects of one kind; one ``{"object": …}`` or ``{"error": …}`` for each, in order."""
        answer = self._call("POST", f"{self.path(kind, project=project)}:batch", {"objects": list(manifests)})
        return list(answer["results"])

    def apply(self, manifests: Sequence[Mapping[str, Any]], *, dry_run: bool = False) -> Objects:
        """Create or change all of ``manifests``, which may refer to each other, or none if one of them is wrong; one
        ``{"action", "object", "changes"}`` for each, in order."""
        given = [{"project": self.project, **m} if _is_in_project(m) else m for m in manifests]
        answer = self._call("POST", "/v1/apply", {"objects": given, "dry_run": dry_run})
        return list(answer["results"])

    def events(
        self, *, since: int | None = None, about: str = "", project: str = "", follow: bool = False, limit: int = 0
    ) -> Iterator[Object]:
        """The journal's records after id ``since``, oldest first; ``about`` is like ``vm/default/web`` (or a part of
        it); ``project``: only of objects there. Without ``since`` the newest 100 (or ``limit``). ``follow`` goes on for ever,
        over lost connections."""
        asked = {name: value for name, value in (("object", about), ("project", project)) if value}
        if limit:
            asked["limit"] = str(limit)
        if since is not None:
            asked["since"] = str(since)
        if not follow:
            yield from self._call("GET", f"/v1/events?{urlencode(asked)}")["items"]
            return
        yield from self._follow_events(asked)

    def watch(
        self,
        kind: str,
        cursor: str,
        *,
        project: str | None = None,
        all_projects: bool = False,
        labels: str = "",
        fields: str = "",
        query: Mapping[str, str] | None = None,
    ) -> Iterator[WatchEvent]:
        """Watch events after ``cursor``, over one connection: put, delete and bookmark events. Raises CursorGone when the cursor is
        too old, Unavailable when the connection is lost; ends when the server ends it."""
        path = self.path(kind, project=project, all_projects=all_projects)
        return follow_once(self.http, path, cursor, _query(labels, fields, query))

    def watch_forever(
        self,
        kind: str | Kind,
        *,
        project: str | None = None,
        all_projects: bool = False,
        labels: str = "",
        fields: str = "",
        query: Mapping[str, str] | None = None,
        on_trouble: Callable[[WeftError], None] | None = None,
        rest: Callable[[int], None] | None = None,
    ) -> Iterator[WatchEvent]:
        """All objects as put events, then one ``synced``, then what happens, for ever, over lost connections.

        When the place in history is lost it lists again: put events for all, delete events (whose object holds only
        kind, name, project and uid) for what went meanwhile, another ``synced``. ``on_trouble`` is called with each failed try's
        error; ``rest`` waits before the next one, given how many there were. Raises what a retry can't fix (NotAuthenticated,
        Forbidden, NotFound, InvalidInput); ends at ``close``."""
        path = self.path(kind, project=project, all_projects=all_projects)
        return follow_forever(self.http, path, _query(labels, fields, query), on_trouble, rest=rest)

    def wait(
        self,
        kind: str,
        name: str,
        until: Callable[[Object | None], bool],
        *,
        timeout_seconds: float,
        project: str | None = None,
        on_change: Callable[[Object | None], None] | None = None,
    ) -> Object | None:
        """The object once ``until`` returns True for it (None: it is gone). ``on_change`` is called with every state on the way;
        an error that it raises ends the wait. Raises TimedOut after ``timeout_seconds``."""
        deadline = self._clock.elapsed() + timeout_seconds
        events = follow_forever(
            self.http,
            self.path(kind, project=project),
            _query("", f"name={name}", None),
            remaining_seconds=lambda: deadline - self._clock.elapsed(),
        )
        current: Object | None = None
        synced = False
        try:
            for event in events:
                if event.type == "synced":
                    synced = True
                else:
                    current = event.object if event.type == "put" else None
                if not synced:
                    continue
                if on_change is not None:
                    on_change(current)
                if until(current):
                    return current
        except TimedOut:
            what = f"{_find_kind(kind).name}/{name}"
            raise TimedOut(
                f"{what} did not reach that state within {timeout_seconds:g} s",
                hint=f"the work goes on; weft wait {what} waits longer",
            ) from None
        raise Unavailable("the client is closed")

    def path(self, kind: str | Kind, name: str = "", *, project: str | None = None, all_projects: bool = False) -> str:
        """The URL path of a kind's collection, or of one object in it. Raises NotFound for an unknown kind."""
        found = kind if isinstance(kind, Kind) else _find_kind(kind)
        collection = f"/v1/{found.plural}"
        if found.scope == "project" and not all_projects:
            collection = f"/v1/projects/{quote(project or self.project, safe='')}/{found.plural}"
        return f"{collection}/{quote(name, safe='')}" if name else collection

    def close(self) -> None:
        """Hang up; other threads' waits end."""
        self.http.close()

    def _call(
        self, method: str, path: str, body: Any = None, *, dry_run: bool = False, key: str | None = None
    ) -> Object:
        headers = {} if method == "GET" else {"Idempotency-Key": key or str(uuid.uuid4())}
        answer = self.http.request(method, f"{path}?dry_run=1" if dry_run else path, body, headers=headers)
        raise_problem(answer)
        found = answer.json()
        if not isinstance(found, dict):
            raise WeftError(f"{method} {path}: the server's answer is not an object")
        return found

    def _follow_events(self, asked: dict[str, str]) -> Iterator[Object]:
        pause = 0.1
        while not self.http.closed.is_set():
            try:
                with self.http.stream("GET", f"/v1/events?{urlencode({**asked, 'follow': '1'})}") as stream:
                    journal = stream.headers.get(JOURNAL_HEADER, "")
                    for line in stream.lines():
                        if line:
                            record = msgspec.json.decode(line, type=dict[str, Any])
                            asked |= {"since": str(record["id"]), "at": str(record["at"]), "journal": journal}
                            pause = 0.1
                            yield record
            except Unavailable:
                pass
            self.http.closed.wait(pause)
            pause = min(pause * 2, 2.0)


def _query(labels: str, fields: str, more: Mapping[str, str] | None) -> dict[str, str]:
    asked = dict(more or {})
    if labels:
        asked["labels"] = labels
    if fields:
        asked["fields"] = fields
    return asked


def _kind_of(manifest: Mapping[str, Any]) -> str:
    kind = manifest.get("kind")
    if not isinstance(kind, str):
        raise InvalidInput("kind is missing", field="kind", hint="give one like kind: vm")
    return kind


def _is_in_project(manifest: Mapping[str, Any]) -> bool:
    """False also for what the server should refuse."""
    try:
        return _find_kind(str(manifest.get("kind"))).scope == "project"
    except WeftError:
        return False


def _find_kind(word: str) -> Kind:
    """Find a kind among all kinds, which an agent never loads: it names those that it watches by their records."""
    found: Kind = importlib.import_module("weft.kinds.registry").find_kind(word)
    return found

"""The lines between the parts: HTTP from nodes and people to the API servers, the store's socket from the controllers to it.

Nothing on them is certain: a message may be lost on its way or on the way back, come twice, come late, or not at all while
its node is cut off. Every such fault is drawn from the seed and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol
from urllib.parse import quote, urlsplit

import msgspec

from tests.simulation.virtual_loop import Event, Part, block_on, either
from weft.client.answer import ClientAnswer, raise_problem
from weft.client.connection import Unanswered
from weft.client.context import Context
from weft.client.server.endpoints import CONNECT_SECONDS, Endpoints
from weft.client.server.endpoints import HEADER as SERVERS
from weft.contracts.store import Absent, Batch, Entry, Lease, Page, Precondition, StoreFull, Write
from weft.objects.errors import StoreUnavailable, Unavailable, WeftError
from weft.serving.answer import Answer as Made
from weft.serving.request import Request
from weft.trust.peer import Peer

ANSWER_SECONDS, SILENCE_SECONDS = 10.0, 30.0


class Faults(Protocol):
    """Where faults are drawn. ``hit`` says whether a fault of this name happens now, and counts it."""

    def hit(self, name: str) -> bool: ...

    def note(self, name: str) -> None: ...

    def delay(self, seconds: float) -> float: ...

    def is_cut_off(self, who: str) -> bool: ...

    def is_deaf(self, who: str) -> bool: ...


class Unsent(Unavailable):
    """Nobody got the request."""


class Doorway:
    """Where the API of server ``name`` can be reached: the process that serves now, and its application."""

    def __init__(self, name: str = "s1") -> None:
        self.name, self.url = name, f"https://{name}:7443"
        self.part: Part | None = None
        self.app: Any = None

    @property
    def up(self) -> bool:
        return self.part is not None and self.part.alive


class Line:
    """HTTP of a client to the API servers. ``token`` is a person's, who asks another server each time, ``node_uid`` of a node with
    its certificate, which keeps to the server that answers, as the shipped client does. ``others`` are the URLs of servers
    that it knows besides the first."""

    def __init__(
        self,
        doorways: Sequence[Doorway],
        faults: Faults,
        who: str,
        token: str = "",
        node_uid: str = "",
        others: Sequence[str] = (),
    ) -> None:
        self._doorways, self._faults, self.who = {one.url: one for one in doorways}, faults, who
        known = [one.url for one in doorways[1:]] if token else list(others)
        self._endpoints = Endpoints(Context(server=doorways[0].url, ca="a fabric's", others=known))
        self._kept: Part | None = None  # the process that the connection leads to
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._peer = Peer(node_uid, 0.0, 1e12, "") if node_uid else None
        self.streams: list[Stream] = []

    @property
    def roams(self) -> bool:
        """Whether it asks several servers in turn."""
        return len(self._doorways) > 1 and self._peer is None

    @property
    def others(self) -> list[str]:
        """All servers that it knows."""
        return [place.url for place in self._endpoints.in_turn()]

    async def exchange(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = {}
    ) -> ClientAnswer:
        """One request. Raises Unavailable when no answer comes, whether or not the API servers acted on it."""
        faults = self._faults
        await asyncio.sleep(faults.delay(0.01))
        doorway = await self._dial()
        unheard = faults.is_deaf(self.who) if method == "GET" else faults.is_cut_off(self.who)
        if unheard or self._is_cut(doorway) or faults.hit("request lost"):
            await self._wait_in_vain()
        part, app = doorway.part, doorway.app
        if part is None or not part.alive or app is None:
            raise Unsent("connection refused")
        # People's requests are repeated by themselves, when no answer came: one that was refused never comes again.
        if self._peer is not None and faults.hit("request repeated"):
            part.spawn(self._late(app, method, path, body, headers))
        stream = Stream(self._most_silence(ANSWER_SECONDS))
        part.spawn(self._ask(app, method, path, body, headers, stream))
        try:
            await stream.complete(part)
        except Unavailable:
            self._kept = None
            raise
        await asyncio.sleep(faults.delay(0.01))
        if faults.is_cut_off(self.who) or self._is_cut(doorway) or faults.hit("answer lost"):
            await self._wait_in_vain()
        if named := stream.headers.get(SERVERS, ""):
            self._endpoints.learn(named)
        return ClientAnswer(stream.status, stream.headers, b"".join(stream.pieces))

    async def _dial(self) -> Doorway:
        """The server that this request goes to; of several the one of the kept connection, or the next that can be reached."""
        if len(self._doorways) == 1:
            return next(iter(self._doorways.values()))
        places = self._endpoints.in_turn()
        if self._peer is None:  # a person, who goes on to the next one
            self._endpoints.prefer(places[1])
            places = self._endpoints.in_turn()
        elif self._kept is not None and self._kept.alive:
            kept = self._doorways[places[0].url]
            if kept.part is self._kept:
                return kept
        for place in places:
            doorway = self._doorways[place.url]
            if not doorway.up or doorway.app is None or doorway.part is None:
                continue
            if self._is_cut(doorway) or doorway.part.frozen:
                await asyncio.sleep(CONNECT_SECONDS)
                continue
            self._endpoints.prefer(place)
            self._kept = doorway.part
            return doorway
        raise Unsent("no server can be reached")

    def _is_cut(self, doorway: Doorway) -> bool:
        """Whether the line between the client and this server of several is cut."""
        cut = self._faults.is_cut_off
        return len(self._doorways) > 1 and (cut(doorway.name) or cut(name_line(self.who, doorway.name)))

    def _most_silence(self, seconds: float) -> float | None:
        """How long an answer is waited for; for ever where it is the only server's."""
        return seconds if len(self._doorways) > 1 else None

    async def _wait_in_vain(self) -> NoReturn:
        self._kept = None
        await asyncio.sleep(self._faults.delay(10.0))
        raise Unavailable("no answer")

    async def begin(self, path: str) -> Stream:
        """A GET whose answer goes on."""
        await asyncio.sleep(self._faults.delay(0.01))
        doorway = await self._dial()
        part, app = doorway.part, doorway.app
        if app is None or part is None or not part.alive:
            raise Unsent("connection refused")
        if self._faults.is_deaf(self.who) or self._is_cut(doorway) or self._faults.hit("request lost"):
            raise Unavailable("no answer")
        stream = Stream(self._most_silence(SILENCE_SECONDS))
        stream.doorway = doorway
        stream.part = part
        self.streams = [old for old in self.streams if not old.closed]
        self.streams.append(stream)
        part.spawn(self._ask(app, "GET", path, b"", {}, stream))
        while not stream.status:
            await stream.more(part)
        if stream.status >= 400:
            await stream.complete(part)
            raise_problem(ClientAnswer(stream.status, stream.headers, b"".join(stream.pieces)))
        return stream

    async def read(self, stream: Stream) -> bytes:
        """The next piece of the answer, empty at its end. Raises Unavailable when the connection is lost."""
        assert stream.part is not None
        while not stream.pieces and not stream.over:
            await stream.more(stream.part)
        cut = self._faults.is_deaf(self.who) or (stream.doorway is not None and self._is_cut(stream.doorway))
        if stream.closed or cut or self._faults.hit("stream broken"):
            stream.close()
            raise Unavailable("the connection was lost")
        await asyncio.sleep(self._faults.delay(0.005))
        return stream.pieces.pop(0) if stream.pieces else b""

    async def _late(self, app: Any, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        await asyncio.sleep(self._faults.delay(6.0))
        await self._ask(app, method, path, body, headers, Stream())

    async def _ask(
        self, app: Any, method: str, path: str, body: bytes, headers: Mapping[str, str], stream: Stream
    ) -> None:
        parts = urlsplit(path)
        request = Request("127.0.0.1", "127.0.0.1", self._peer, lambda: None)
        request.method, request.path = method, quote(parts.path, safe="/:%-._~")
        request.query = parts.query
        request.headers = [
            (name.lower().encode(), value.encode()) for name, value in {**self._headers, **headers}.items()
        ]
        request.whole = True
        if body:
            request.put(body)
        try:
            await stream.take(await app(request))
        finally:
            stream.over = True
            stream.news.set()


class Stream:
    """One answer on its way. ``silence_seconds``: it is given up after so long without a piece; None: never."""

    def __init__(self, silence_seconds: float | None = None) -> None:
        self._silence_seconds = silence_seconds
        self.doorway: Doorway | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.over = self.closed = False
        self.news = asyncio.Event()
        self.part: Part | None = None

    async def take(self, made: Made) -> None:
        """Carry over what the API servers answer, to its end."""
        self.status, self.headers = made.status, dict(made.headers)
        if made.body:
            self.pieces.append(made.body)
        self.news.set()
        if made.pieces is None:
            return
        try:
            async for piece in made.pieces:
                if self.closed:
                    raise OSError("the client hung up")
                self.pieces.append(piece)
                self.news.set()
        finally:
            await made.pieces.aclose()

    async def more(self, part: Part) -> None:
        """Return when something came; raises Unavailable when ``part`` is gone, Unanswered when it is silent for too long."""
        if not self.news.is_set():
            loop = asyncio.get_running_loop()
            waiting = loop.create_task(self.news.wait())
            if self._silence_seconds is not None:
                timer = loop.call_later(self._silence_seconds, waiting.cancel)
            await either(waiting, part.died)
            if self._silence_seconds is not None:
                timer.cancel()
            if waiting.cancelled():
                raise Unanswered("nothing came")
            waiting.cancel()
        if not part.alive:
            raise Unavailable("the connection was lost")
        self.news.clear()

    async def complete(self, part: Part) -> None:
        while not self.over:
            await self.more(part)

    def close(self) -> None:
        self.closed = True
        self.news.set()


def name_line(who: str, server: str) -> str:
    """The line between a client and one of several servers, as what may be cut off."""
    return f"{who} from {server}"


def is_placement(precondition: Precondition) -> bool:
    return isinstance(precondition, Absent) and precondition.key.startswith("/allocation/")


class NodeHttp:
    """``weft.client.http.Http`` for the blocking code of an agent, over a ``Line``."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.closed = Event()

    def request(self, method: str, path: str, body: Any = None, **more: Any) -> ClientAnswer:
        data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        answer: ClientAnswer = block_on(self._line.exchange(method, path, data, more.get("headers") or {}))
        return answer

    def begin(self, path: str) -> Callable[[], ClientAnswer]:
        return functools.partial(self.request, "GET", path)

    def stream(self, method: str, path: str) -> NodeStream:
        return NodeStream(self._line, block_on(self._line.begin(path)))

    def close(self) -> None:
        self.closed.set()


class NodeStream:
    def __init__(self, line: Line, stream: Stream) -> None:
        self._line, self._stream = line, stream

    def lines(self) -> Iterator[bytes]:
        while piece := block_on(self._line.read(self._stream)):
            yield from piece.splitlines()

    def __enter__(self) -> NodeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class Socket:
    """The store as another process reaches it: through ``doorway``'s, over a line. ``writer`` names who writes; ``kill``
    ends the process that it is in."""

    def __init__(
        self,
        store: Any,
        faults: Faults,
        doorway: Doorway,
        *,
        local: bool,
        writer: Callable[[], str],
        kill: Callable[[], None] | None = None,
    ) -> None:
        self._kill = kill
        self._store, self._faults, self._doorway = store, faults, doorway
        self._local, self._writer = local, writer

    async def open(self) -> None: ...

    async def commit(
        self, writes: Sequence[Write], preconditions: Sequence[Precondition] = (), *, idempotency_key: str | None = None
    ) -> int:
        await self._go()
        if writes and self._faults.hit("disk full"):
            self._faults.note("write refused by a full disk")
            raise StoreFull("the store's disk is full")
        writer = self._writer()
        part = self._doorway.part
        if not self._local and part is not None and self._faults.hit("commit late"):
            part.spawn(self._land(writer, writes, preconditions))
            raise StoreUnavailable("the store's connection was lost")
        if self._kill is not None and any(is_placement(item) for item in preconditions):
            await self._die_between(writer, writes, preconditions)
        work = self._store.commit_as(writer, writes, preconditions, idempotency_key)
        try:
            revision: int = await self._served(work)
        except StoreFull:
            self._faults.note("write refused by a full disk")
            raise
        await self._come("commit's answer lost")
        return revision

    async def _die_between(self, writer: str, writes: Sequence[Write], preconditions: Sequence[Precondition]) -> None:
        """It is decided, and its process may be gone before the commit, or before anybody hears what became of it."""
        part, kill = self._doorway.part, self._kill
        assert kill is not None
        before = self._faults.hit("killed before a placement lands")
        if not before and not self._faults.hit("killed after a placement was sent"):
            return
        if not before and part is not None:
            part.spawn(self._land(writer, writes, preconditions))
        kill()
        await asyncio.get_running_loop().create_future()  # nothing of it runs on

    async def _land(self, writer: str, writes: Sequence[Write], preconditions: Sequence[Precondition]) -> None:
        """What nobody waits for any more arrives all the same."""
        await asyncio.sleep(self._faults.delay(4.0))
        with contextlib.suppress(WeftError):
            await self._store.commit_as(writer, writes, preconditions, None)

    async def get(self, key: str) -> Entry | None:
        await self._go()
        entry: Entry | None = await self._served(self._store.get(key))
        return entry

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        await self._go()
        page: Page = await self._served(self._store.list(prefix, limit=limit, after=after))
        return page

    async def count(self, prefix: str) -> int:
        await self._go()
        count: int = await self._served(self._store.count(prefix))
        return count

    async def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        await self._go()
        part = self._doorway.part
        batches = self._store.watch(prefix, cursor)
        following: asyncio.Future[Batch] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(batches))
                if part is not None and not self._local:
                    await either(following, part.died)
                    if not part.alive or self._faults.hit("watch broken"):
                        raise StoreUnavailable("the store's connection was lost")
                batch = await following
                if not self._local:
                    await asyncio.sleep(self._faults.delay(0.003))
                    await self._until_thawed()
                yield batch
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await batches.aclose()

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        await self._go()
        lease: Lease | None = await self._served(self._store.grant(name, holder, ttl_seconds, digest))
        return lease

    async def release(self, name: str, holder: str) -> None:
        await self._go()
        await self._store.release(name, holder)

    async def leases(self, prefix: str, *, digests: bool = False) -> Sequence[Lease]:
        await self._go()
        leases: Sequence[Lease] = await self._store.leases(prefix, digests=digests)
        return leases

    async def _served(self, work: Any) -> Any:
        """The result of ``work``, which the store's process carries out; it may die meanwhile."""
        part = self._doorway.part
        if self._local or part is None:
            return await work  # whoever asks dies with it
        working = asyncio.get_running_loop().create_task(work)
        await either(working, part.died)
        if not working.done():
            working.cancel()
            raise StoreUnavailable("the store's connection was lost")
        return working.result()

    async def _go(self) -> None:
        await asyncio.sleep(self._faults.delay(0.002))
        if not self._local and not self._doorway.up:
            raise StoreUnavailable("nobody serves the store")
        await self._until_thawed()

    async def _until_thawed(self) -> None:
        """While the process that serves the store stands still, nothing comes of it."""
        part = self._doorway.part
        while not self._local and part is not None and part.frozen:
            await asyncio.sleep(0.2)

    async def _come(self, loss: str) -> None:
        part = self._doorway.part
        await asyncio.sleep(self._faults.delay(0.002))
        await self._until_thawed()
        if not self._local and (part is None or not part.alive or self._faults.hit(loss)):
            raise StoreUnavailable("the store's connection was lost")

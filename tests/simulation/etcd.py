"""An etcd cluster in virtual time, and the gRPC channel of each server to it: the shipped ``EtcdStore`` runs over it, unchanged.

What the members agree on is one log of revisions. Everything else is uncertain: a request may be lost on its way or on the way
back, or be done seconds after its sender gave up, as by a member that hung; a server may be cut off, or reach the cluster and not
hear from it; and for a while nobody may lead.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import sys
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import grpc
import msgspec

from tests.simulation.fate import Fate
from tests.simulation.ledger import Notes, OwnedWatches
from tests.simulation.truth import Violation
from tests.simulation.virtual_loop import Clock, Part, VirtualLoop
from weft.contracts.store import Change, Precondition, Write
from weft.launch.store.engine import LEADER_LEASE
from weft.store.etcd import EtcdStore, connection, wire
from weft.store.etcd import store as etcd_store

ENTRIES, LEADER = b"/weft/o", b"/weft/l/" + LEADER_LEASE.encode()
KEEP_REVISIONS = 3_000  # few, so that a server that was away for long finds them compacted
LATE_SECONDS, MOST_LATE_SECONDS = 5.0, 20.0
IN_ORDER_SECONDS = 1e-6
KEEPALIVE_SECONDS = 13.0  # after which a watch over a line that is cut has ended
NOT_A_CONTROLLER = ("API server", "setup")
_signature: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar("signature", default=("", ""))
_server: contextvars.ContextVar[str] = contextvars.ContextVar("server", default="")


Header, KeyValue, Event = (wire._classes[name] for name in ("Header", "KeyValue", "Event"))
ResponseOp, RangeResponse, PutResponse = (
    wire._classes[name] for name in ("ResponseOp", "RangeResponse", "PutResponse")
)
DeleteRangeResponse, TxnResponse = wire._classes["DeleteRangeResponse"], wire._classes["TxnResponse"]
CompactionResponse, WatchResponse = wire._classes["CompactionResponse"], wire._classes["WatchResponse"]


class Refused(Exception):
    """An error that etcd answers with."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details

    def as_rpc_error(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=self.details)


class Cluster:
    """``cut_off`` are servers that don't reach it, ``deaf`` those that reach it and hear nothing; ``leaderless``: none does."""

    def __init__(self, loop: VirtualLoop, fate: Fate, notes: Notes) -> None:
        self.loop, self.fate, self.notes = loop, fate, notes
        self.cut_off: set[str] = set()
        self.deaf: set[str] = set()
        self.leaderless = self.full = False
        self.revision = 1
        self._compacted = 0
        self._now: dict[bytes, Any] = {}
        self._past: dict[bytes, list[tuple[int, Any]]] = {}  # of each key, its values from a revision on; None: none
        self._keys: list[bytes] = []  # all there ever were, sorted
        self._log: list[tuple[int, list[Any]]] = []
        self._watches: dict[Watch, None] = {}
        self._leaders: dict[int, str] = {}  # fence of the leader lease → the process that got it
        self.processes: dict[
            str, str
        ] = {}  # by the holders of the leader lease: grants of several processes share a transaction

    @property
    def leader(self) -> str:
        """The process that holds the leader lease."""
        lease = self._now.get(LEADER)
        return self._leaders[lease.create_revision] if lease is not None else "nobody"

    def answer(self, path: str, request: Any, signature: tuple[str, str]) -> Any:
        """Do what is asked for. Raises Refused."""
        match path.rpartition("/")[2]:
            case "Range":
                return self._range(request, request.revision or self.revision)
            case "Txn":
                return self._transact(request, signature)
            case "DeleteRange":
                with self._revision(signature) as events:
                    deleted = self._delete(request, events)
                return DeleteRangeResponse(header=self._header(), deleted=deleted)
            case "Compact":
                return self._compact(request.revision)
        raise AssertionError(path)

    def join(self, watch: Watch) -> None:
        """Send it all from its revision on."""
        if watch.start < self._compacted:
            return watch.send(WatchResponse(header=self._header(), compact_revision=self._compacted))
        watch.send(WatchResponse(header=self._header(), created=True))
        for _, events in self._log[bisect_left(self._log, watch.start, key=lambda each: each[0]) :]:
            watch.offer(events, self._header())
        self._watches[watch] = None

    def leave(self, watch: Watch) -> None:
        self._watches.pop(watch, None)

    def _header(self) -> Any:
        return Header(revision=self.revision, cluster_id=7)

    def _range(self, request: Any, at: int) -> Any:
        if at < self._compacted:
            raise Refused(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
        if at > self.revision:
            raise Refused(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
        found = [kv for key in self._between(request) if (kv := self._find(key, at)) is not None]
        kept = [] if request.count_only else found[: request.limit or None]
        kvs = [_without_value(kv) for kv in kept] if request.keys_only else kept
        return RangeResponse(header=self._header(), kvs=kvs, more=len(kept) < len(found), count=len(found))

    def _between(self, request: Any) -> Sequence[bytes]:
        if not request.range_end:
            return [request.key]
        return self._keys[bisect_left(self._keys, request.key) : bisect_left(self._keys, request.range_end)]

    def _find(self, key: bytes, at: int) -> Any:
        if at == self.revision:
            return self._now.get(key)
        past = self._past.get(key, [])
        place = bisect_right(past, at, key=lambda each: each[0])
        return past[place - 1][1] if place else None

    def _transact(self, request: Any, signature: tuple[str, str]) -> Any:
        if self.full and _may_put(request):
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
        held = iter(self._judge(request))
        with self._revision(signature) as events:
            response = self._do(request, held, events)
        response.header.CopyFrom(self._header())
        return response

    def _judge(self, request: Any) -> list[bool]:
        """Whether the conditions of the transaction hold, and of those in the branch of it that is done, in order: as etcd, before
        any of it is done."""
        holds = all(self._holds(each) for each in request.compare)
        within = [op.txn for op in (request.success if holds else request.failure) if op.HasField("txn")]
        return [holds, *(one for txn in within for one in self._judge(txn))]

    def _do(self, request: Any, held: Iterator[bool], events: list[Any]) -> Any:
        succeeded, responses = next(held), []
        for op in request.success if succeeded else request.failure:
            if op.HasField("put"):
                assert all(event.kv.key != op.put.key for event in events), "etcd refuses to write a key twice"
                self._put(op.put, events)
                responses.append(ResponseOp(put=PutResponse()))
            elif op.HasField("delete_range"):
                deleted = DeleteRangeResponse(deleted=self._delete(op.delete_range, events))
                responses.append(ResponseOp(delete_range=deleted))
            elif op.HasField("txn"):
                responses.append(ResponseOp(txn=self._do(op.txn, held, events)))
            else:
                responses.append(ResponseOp(range=self._range(op.range, self.revision)))
        return TxnResponse(succeeded=succeeded, responses=responses)

    def _holds(self, compare: Any) -> bool:
        kv = self._now.get(compare.key)
        name = {wire.OF_VERSION: "version", wire.OF_CREATE: "create_revision", wire.OF_MOD: "mod_revision"}
        field = name[compare.target]
        equal = (getattr(kv, field) if kv is not None else 0) == getattr(compare, field)
        return equal is (compare.result == wire.EQUAL)

    def _put(self, request: Any, events: list[Any]) -> None:
        was = self._now.get(request.key)
        revision = self.revision + 1
        kv = KeyValue(
            key=request.key, value=request.value, mod_revision=revision,
            create_revision=was.create_revision if was is not None else revision,
            version=was.version + 1 if was is not None else 1,
        )  # fmt: skip
        self._now[request.key] = kv
        events.append(Event(kv=kv, prev_kv=was))

    def _delete(self, request: Any, events: list[Any]) -> int:
        found = [key for key in self._between(request) if key in self._now]
        for key in found:
            kv = KeyValue(key=key, mod_revision=self.revision + 1)
            events.append(Event(type=wire.DELETED, kv=kv, prev_kv=self._now.pop(key)))
        return len(found)

    @contextlib.contextmanager
    def _revision(self, signature: tuple[str, str]) -> Iterator[list[Any]]:
        """What is done within is one revision, if it does anything."""
        events: list[Any] = []
        yield events
        if not events:
            return
        self.revision += 1
        for event in events:
            key = event.kv.key
            if key not in self._past:
                self._past[key] = []
                insort(self._keys, key)
            self._past[key].append((self.revision, None if event.type == wire.DELETED else event.kv))
            if key == LEADER and event.kv.create_revision == self.revision:
                self._leaders[self.revision] = self.processes[msgspec.json.decode(event.kv.value)["holder"]]
        self._log.append((self.revision, events))
        self._note(events, *signature)
        for watch in list(self._watches):
            watch.offer(events, self._header())

    def _note(self, events: Sequence[Any], writer: str, process: str) -> None:
        changes = [
            Change(
                event.kv.key[len(ENTRIES) :].decode(),
                None if event.type == wire.DELETED else event.kv.value,
                event.prev_kv.value if event.HasField("prev_kv") else None,
            )
            for event in events
            if event.kv.key.startswith(ENTRIES + b"/")
        ]
        if not changes:
            return
        with contextlib.suppress(Violation):  # which is noted, and ends the run
            self.notes.see(writer, changes)
            if writer not in NOT_A_CONTROLLER and self.leader != process:
                self.notes.fail(f"{writer} of {process} wrote {changes[0].key} while {self.leader} leads")

    def _compact(self, revision: int) -> Any:
        if revision <= self._compacted:
            raise Refused(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
        self._compacted = revision
        del self._log[: bisect_left(self._log, revision, key=lambda each: each[0])]
        return CompactionResponse(header=self._header())


def _may_put(request: Any) -> bool:
    ops = (*request.success, *request.failure)
    return any(op.HasField("put") or (op.HasField("txn") and _may_put(op.txn)) for op in ops)


def _without_value(kv: Any) -> Any:
    bare = KeyValue()
    bare.CopyFrom(kv)
    bare.value = b""
    return bare


class Channel:
    """The channel of one server's process to the cluster, as far as ``EtcdConnection`` uses it."""

    def __init__(self, cluster: Cluster, server: str) -> None:
        self._cluster, self._server = cluster, server

    def unary_unary(self, path: str, *_: Any) -> Callable[..., Any]:
        return functools.partial(self._call, path)

    def stream_stream(self, path: str, *_: Any) -> Callable[..., Watch]:
        return lambda **_: Watch(self._cluster, self._server)

    async def close(self) -> None: ...

    async def _call(self, path: str, request: Any, *, timeout: float, **_: Any) -> Any:
        loop = self._cluster.loop
        answer = loop.create_future()
        # It is sent, and goes its way whatever becomes of its sender.
        sent = self._carry(path, request, _signature.get(), answer)
        loop.create_task(sent, name="a request to etcd", context=contextvars.Context())
        late = Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        timer = loop.call_later(timeout, _fail, answer, late)
        try:
            return await answer
        except Refused as refused:
            raise refused.as_rpc_error() from None
        finally:
            timer.cancel()

    async def _carry(self, path: str, request: Any, signature: tuple[str, str], answer: asyncio.Future[Any]) -> None:
        cluster, fate = self._cluster, self._cluster.fate
        await asyncio.sleep(fate.delay(0.001))
        if self._server in cluster.cut_off or fate.hit("request to etcd lost"):
            return
        if cluster.leaderless:
            if fate.draw.random() < 0.5:
                _fail(answer, Refused(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"))
            return  # or nothing comes of it
        if fate.hit("request to etcd late"):
            await asyncio.sleep(min(MOST_LATE_SECONDS, fate.delay(LATE_SECONDS)))
        try:
            response, refused = cluster.answer(path, request, signature), None
        except Refused as problem:
            response, refused = None, problem
        except Exception as problem:
            return cluster.notes.fail(f"the simulated etcd broke down: {problem!r}")
        await asyncio.sleep(fate.delay(0.001))
        if self._server in cluster.cut_off | cluster.deaf or fate.hit("answer of etcd lost"):
            return
        if refused is not None:
            _fail(answer, refused)
        elif not answer.done():
            answer.set_result(response)


def _fail(answer: asyncio.Future[Any], refused: Refused) -> None:
    if not answer.done():
        answer.set_exception(refused)


class Watch:
    """One watch stream: what comes is in order, and late, and seldom not at all; then the stream ends."""

    def __init__(self, cluster: Cluster, server: str) -> None:
        self.start = 0
        self._cluster, self._server = cluster, server
        self._key = self._end = b""
        self._came: deque[Any] = deque()
        self._news: asyncio.Future[None] | None = None
        self._at = 0.0  # when the last one comes
        self._silent = self._broken = False

    async def write(self, request: Any) -> None:
        asked = request.create_request
        self.start, self._key, self._end = asked.start_revision, asked.key, asked.range_end
        loop = self._cluster.loop
        loop.call_later(self._cluster.fate.delay(0.002), self._stand, context=contextvars.Context())

    async def read(self) -> Any:
        while not self._came:
            if self._broken:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "the stream broke").as_rpc_error()
            self._news = self._cluster.loop.create_future()
            await self._news
        return self._came.popleft()

    def cancel(self) -> None:
        self._cluster.leave(self)

    def offer(self, events: Sequence[Any], header: Any) -> None:
        matching = [each for each in events if self._key <= each.kv.key < self._end]
        if matching and matching[0].kv.mod_revision >= self.start:
            self.send(WatchResponse(header=header, events=matching))

    def send(self, response: Any) -> None:
        loop, fate = self._cluster.loop, self._cluster.fate
        delay = fate.delay(5.0) if fate.hit("watch of etcd late") else fate.delay(0.001)
        self._at = max(self._at + IN_ORDER_SECONDS, loop.time() + delay)
        loop.call_at(self._at, self._arrive, response, context=contextvars.Context())

    def _stand(self) -> None:
        cluster = self._cluster
        if self._server in cluster.cut_off | cluster.deaf or cluster.leaderless:
            self._fall_silent()
        else:
            cluster.join(self)

    def _arrive(self, response: Any) -> None:
        cluster = self._cluster
        if self._silent:
            return
        if self._server in cluster.cut_off | cluster.deaf or cluster.fate.hit("watch of etcd broken"):
            return self._fall_silent()
        self._came.append(response)
        self._wake()

    def _fall_silent(self) -> None:
        """Nothing comes any more, which is noticed after a while."""
        self._silent = True
        self._cluster.leave(self)
        seconds = self._cluster.fate.draw.uniform(0.0, KEEPALIVE_SECONDS)
        self._cluster.loop.call_later(seconds, self._break, context=contextvars.Context())

    def _break(self) -> None:
        self._broken = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class EtcdLedger:
    """The store as one server's processes have it, over the cluster that all servers share."""

    def __init__(self, cluster: Cluster, server: str, clock: Clock) -> None:
        self.notes, self.processes = cluster.notes, cluster.processes
        self._cluster, self._server, self._clock = cluster, server, clock
        self.end_process()

    async def open(self) -> None:
        _server.set(self._server)
        await self.store.open()

    def end_process(self) -> None:
        self.store = EtcdStore(["/etcd"], self._clock, keep_revisions=KEEP_REVISIONS)

    def forget(self, part: Part) -> None:
        watches = self.store._watches
        if isinstance(watches, OwnedWatches):
            watches.forget(part)

    def of(self, process: str) -> _Signed:
        return _Signed(self, process)

    async def commit_as(self, writer: str, writes: Sequence[Write], *more: Any) -> int:
        return await self.of(writer).commit_as(writer, writes, *more)

    async def back_up(self) -> None: ...

    def restore(self) -> bool:
        return False

    def fill_disk(self, full: bool) -> bool:
        self._cluster.full = full
        return True


class _Signed:
    """The store, of which each request carries the name of its process."""

    def __init__(self, ledger: EtcdLedger, process: str) -> None:
        self._ledger, self._process = ledger, process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger.store, name)

    async def commit_as(
        self,
        writer: str,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        idempotency_key: str | None = None,
    ) -> int:
        _signature.set((writer, self._process))
        return await self._ledger.store.commit(writes, preconditions, idempotency_key=idempotency_key)

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Any:
        if name == LEADER_LEASE:
            self._ledger.processes[holder] = self._process
        return await self._ledger.store.grant(name, holder, ttl_seconds, digest)


@contextlib.contextmanager
def reach_by_channels(cluster: Cluster, loop: VirtualLoop) -> Iterator[None]:
    """gRPC's channels are those of the simulation."""
    with (
        mock.patch.object(grpc.aio, "insecure_channel", lambda *_: Channel(cluster, _server.get())),
        mock.patch.object(connection, "SystemClock", lambda: Clock(loop)),
        mock.patch.object(etcd_store, "Watches", OwnedWatches),
    ):
        yield
    # Generators that were closed while they waited for one another say so when they are found.
    with mock.patch.object(sys, "unraisablehook", lambda _: None):
        gc.collect()

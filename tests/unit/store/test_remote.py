"""The store's socket: who may use it, what a lost connection means, and that one slow reader holds up nobody."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from weft.contracts.store import (
    Absent,
    Compacted,
    LimitExceeded,
    Precondition,
    PreconditionFailed,
    Put,
    Store,
    StoreFull,
    Write,
)
from weft.objects.errors import InvalidInput, NotFound, StoreUnavailable, WeftError
from weft.store.memory import MemoryStore
from weft.store.remote import RemoteStore, StoreServer
from weft.store.remote.frames import encode_frame
from weft.store.remote.wire import MAX_CALL_BYTES, WINDOW_BYTES, Call, GetCall, GrantCall, LeasesCall


@asynccontextmanager
async def served(store: Store, path: Path) -> AsyncIterator[StoreServer]:
    server = StoreServer(store, path)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def connected(path: Path, patience_seconds: float = 10.0) -> AsyncIterator[RemoteStore]:
    remote = RemoteStore(path, patience_seconds=patience_seconds)
    await remote.open()
    try:
        yield remote
    finally:
        await remote.close()


class SlowToAnswer(MemoryStore):
    """Commits at once, but keeps the answer back until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.times_asked = 0
        self.committed = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        self.times_asked += 1
        revision = await super().commit(writes, preconditions, idempotency_key=idempotency_key)
        self.committed.set()
        await self.may_answer.wait()
        return revision


class Failing(MemoryStore):
    """Raises what it was given."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        raise self.error


async def test_only_the_owner_can_open_the_socket_and_it_goes_with_the_server(tmp_path: Path) -> None:
    async with served(MemoryStore(), tmp_path / "sock"):
        assert stat.S_IMODE((tmp_path / "sock").stat().st_mode) == 0o600
    assert not (tmp_path / "sock").exists()


async def test_a_socket_in_use_is_refused_and_an_abandoned_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    async with served(MemoryStore(), path), connected(path) as remote:
        with pytest.raises(StoreUnavailable, match="another process"):
            await StoreServer(MemoryStore(), path).start()
        assert await remote.get("/a") is None
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StoreUnavailable):
        await StoreServer(MemoryStore(), tmp_path / "file").start()
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(StoreUnavailable, match="longer than"):
        await StoreServer(MemoryStore(), tmp_path / ("x" * 110)).start()


async def test_opening_waits_a_while_for_the_server_and_then_says_that_nobody_answers(tmp_path: Path) -> None:
    remote = RemoteStore(tmp_path / "sock")
    opening = asyncio.create_task(remote.open())
    await asyncio.sleep(0.1)
    async with served(MemoryStore(), tmp_path / "sock"):
        await asyncio.wait_for(opening, 60)
        await remote.close()
    with pytest.raises(StoreUnavailable, match="no store answers"):
        await RemoteStore(tmp_path / "sock", patience_seconds=0.2).open()


async def test_a_commit_cut_off_says_that_its_outcome_is_unknown(tmp_path: Path) -> None:
    store = SlowToAnswer()
    async with served(store, tmp_path / "sock") as server, connected(tmp_path / "sock") as remote:
        commit = asyncio.create_task(remote.commit([Put("/a", b"1")]))
        await store.committed.wait()
        await server.close()
        with pytest.raises(StoreUnavailable, match="outcome is unknown"):
            await commit
        with pytest.raises(StoreUnavailable, match="nothing was sent"):
            await remote.commit([Put("/a", b"2")])


async def test_a_commit_with_an_idempotency_key_is_repeated_by_itself_and_made_once(tmp_path: Path) -> None:
    store = SlowToAnswer()
    async with connected_to_restarting(store, tmp_path / "sock") as (remote, restart):
        commit = asyncio.create_task(remote.commit([Put("/a", b"1")], [Absent("/a")], idempotency_key="once"))
        await store.committed.wait()
        restarting = asyncio.create_task(restart())
        await asyncio.sleep(0.01)
        store.may_answer.set()  # too late for the first answer: its connection is gone
        await restarting
        assert await asyncio.wait_for(commit, 60) == 1
        assert store.times_asked == 2
        assert await remote.commit([]) == 1


@asynccontextmanager
async def connected_to_restarting(
    store: Store, path: Path
) -> AsyncIterator[tuple[RemoteStore, Callable[[], Awaitable[None]]]]:
    async with served(store, path) as first, connected(path) as remote:
        second = StoreServer(store, path)

        async def restart() -> None:
            await first.close()
            await asyncio.sleep(0.1)
            await second.start()

        try:
            yield remote, restart
        finally:
            await second.close()


async def test_a_watch_ends_with_the_connection_and_resumes_by_cursor(tmp_path: Path) -> None:
    store = MemoryStore()
    path = tmp_path / "sock"
    cursor = (await store.list("/")).cursor
    seen: list[int] = []
    async with connected_to_restarting(store, path) as (remote, restart):
        await store.commit([Put("/a", b"1")])
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(60), aclosing(remote.watch("/", cursor)) as watch:
                async for batch in watch:
                    seen.append(batch.revision)
                    cursor = batch.cursor
                    await restart()
        await store.commit([Put("/a", b"2")])
        async with asyncio.timeout(60), aclosing(remote.watch("/", cursor)) as watch:
            seen.append((await anext(watch)).revision)
    assert seen == [1, 2]


async def test_a_slow_watch_holds_up_neither_other_calls_nor_other_watches(tmp_path: Path) -> None:
    store = MemoryStore()
    async with served(store, tmp_path / "sock") as server, connected(tmp_path / "sock") as remote:
        cursor = (await remote.list("/")).cursor
        async with (
            asyncio.timeout(30),
            aclosing(remote.watch("/", cursor)) as slow,
            aclosing(remote.watch("/", cursor)) as quick,
        ):
            commits = 3 * WINDOW_BYTES // 100_000
            waiting = asyncio.ensure_future(anext(slow))
            for n in range(1, commits + 1):
                await remote.commit([Put(f"/k/{n}", b"x" * 100_000)])
                assert (await anext(quick)).revision == n
            await waiting
            [connection] = server._connections
            under_way = [window._bytes for window in connection._watches.values()]
            assert WINDOW_BYTES <= max(under_way) < WINDOW_BYTES + 200_000
            assert [(await anext(slow)).revision for _ in range(commits - 1)] == list(range(2, commits + 1))


async def test_millions_of_small_batches_do_not_use_up_the_window(tmp_path: Path) -> None:
    """What the server counts as sent and the client as consumed must be the same to the byte."""
    store = MemoryStore()
    async with served(store, tmp_path / "sock") as server, connected(tmp_path / "sock") as remote:
        cursor = (await remote.list("/")).cursor
        async with asyncio.timeout(30), aclosing(remote.watch("/", cursor)) as watch:
            for n in range(1, 401):
                await store.commit([Put("/k", b"x" * 10_000)])
                assert (await anext(watch)).revision == n
            await remote.get("/k")
            [connection] = server._connections
            [window] = connection._watches.values()
            [watched] = remote._link.watches.values()  # type: ignore[union-attr]
            assert window._bytes == watched._consumed


async def test_whoever_speaks_nonsense_is_hung_up_on_and_others_are_not(tmp_path: Path) -> None:
    async with served(MemoryStore(), tmp_path / "sock"), connected(tmp_path / "sock") as remote:
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\3abc", b"\xff\xff\xff\xff"):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")
            writer.write(encode_frame(GetCall(1, "/a"))[:5])
            writer.write(nonsense * 40)
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 60) == b""
            writer.close()
        await remote.commit([Put("/a", b"1")])


async def test_a_call_split_into_single_bytes_is_understood(tmp_path: Path) -> None:
    async with served(MemoryStore(), tmp_path / "sock"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")
        for byte in encode_frame(GetCall(7, "/a")):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        head = await asyncio.wait_for(reader.readexactly(4), 60)
        assert len(await reader.readexactly(int.from_bytes(head, "big"))) > 0
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "error",
    [
        PreconditionFailed(Absent("/a"), 5),
        StoreFull("no room", hint="make some", retry_after_seconds=2.0),
        StoreUnavailable("gone", details={"x": [1, "y"]}),
        Compacted("list again"),
        LimitExceeded("too much", field="value"),
        InvalidInput("no", field="key", reason="special"),
        NotFound("not of the contract, but an error of ours"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_arrives_as_what_it_was(tmp_path: Path, error: WeftError) -> None:
    async with served(Failing(error), tmp_path / "sock"), connected(tmp_path / "sock") as remote:
        with pytest.raises(WeftError) as caught:
            await remote.commit([])
        assert type(caught.value) is type(error)
        assert caught.value.to_dict() == error.to_dict()
        if isinstance(error, PreconditionFailed):
            assert isinstance(caught.value, PreconditionFailed)
            assert (caught.value.failed, caught.value.current_revision) == (error.failed, error.current_revision)


async def test_an_unforeseen_failure_is_answered_and_the_server_goes_on(tmp_path: Path) -> None:
    async with served(Failing(ZeroDivisionError("oops")), tmp_path / "sock"), connected(tmp_path / "sock") as remote:
        with pytest.raises(WeftError, match="ZeroDivisionError: oops"):
            await remote.commit([])
        assert await remote.get("/a") is None


async def test_a_call_too_large_for_the_wire_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with served(MemoryStore(), tmp_path / "sock"), connected(tmp_path / "sock") as remote:
        with pytest.raises(LimitExceeded):
            await remote.commit([Put("/a", b"x" * MAX_CALL_BYTES)])
        assert await remote.get("/a") is None


async def test_many_callers_share_one_connection_without_mixing_up_answers(tmp_path: Path) -> None:
    store = MemoryStore()
    async with served(store, tmp_path / "sock") as server, connected(tmp_path / "sock") as remote:
        await asyncio.gather(*(remote.commit([Put(f"/k/{n}", b"%d" % n)]) for n in range(500)))
        entries = await asyncio.gather(*(remote.get(f"/k/{n}") for n in range(500)))
        assert [entry.value for entry in entries if entry] == [b"%d" % n for n in range(500)]
        assert len(server._connections) == 1


class GrantCallBefore(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    """As a weft before digests had it."""

    id: int
    name: str
    holder: str
    ttl_seconds: float


def test_a_weft_that_knows_no_digests_and_one_that_does_understand_each_other() -> None:
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
    assert decode(encode(["grant", 1, "node/a", "x", 30.0]), type=Call) == GrantCall(1, "node/a", "x", 30.0)
    assert decode(encode(["leases", 2, "node/"]), type=Call) == LeasesCall(2, "node/")
    newer = encode(GrantCall(1, "node/a", "x", 30.0, b"what it uses"))
    assert decode(newer, type=GrantCallBefore) == GrantCallBefore(1, "node/a", "x", 30.0)

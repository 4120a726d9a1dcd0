"""A store on a unix socket: other processes of this machine and user use it through ``RemoteStore``.

Each call becomes a call of the store, with its answer sent when it comes; so commits of many callers meet in the
store's queue and share an fsync. A process that can open the socket may do everything: its mode is 0600.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.store import Store
from weft.objects.errors import StoreUnavailable, Unavailable, WeftError
from weft.store.remote.frames import HEAD_BYTES, FrameProtocol, encode_frame, error_to_answer
from weft.store.remote.wire import (
    MAX_CALL_BYTES,
    WINDOW_BYTES,
    Call,
    CommitCall,
    Committed,
    CompactCall,
    Consumed,
    Done,
    EndWatch,
    GetCall,
    Got,
    GrantCall,
    Granted,
    HoldCall,
    KeysCall,
    KeysKept,
    LeasesCall,
    LeasesFound,
    ListCall,
    Listed,
    ReleaseCall,
    StoreAnswer,
    SwitchCall,
    WatchCall,
    Watched,
)
from weft.store.switch import Hold, StoreSwitch

_MOST_CALLS_IN_HAND = 2_000  # of one connection; beyond it, nothing more is read until some are answered
_LONGEST_PATH_BYTES = 107

_log = logging.getLogger(__name__)


class StoreServer:
    """Serves ``store`` at ``socket_path``. The store is opened and closed by its owner."""

    def __init__(self, store: Store, socket_path: str | Path) -> None:
        self._store = store
        self._path = Path(socket_path)
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; raises StoreUnavailable if the path can't be used or another process listens there."""
        listener = _listen_at(self._path)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Connection(self._store, self._connections), sock=listener, backlog=128
        )

    async def close(self) -> None:
        """Stop listening, drop every connection, remove the socket."""
        if self._server is None:
            return
        self._server.close()
        await asyncio.gather(*[connection.drop() for connection in list(self._connections)])
        await self._server.wait_closed()
        self._server = None
        self._path.unlink(missing_ok=True)


class _Connection(FrameProtocol):
    """One caller: its calls in hand, its watches, and the answers for it."""

    def __init__(self, store: Store, connections: set[_Connection]) -> None:
        super().__init__(MAX_CALL_BYTES, self._take_call)
        self._store = store
        self._connections = connections
        self._decode = msgspec.msgpack.Decoder(Call).decode
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls_in_hand = 0
        self._watches: dict[int, _Window] = {}
        self._writable = True
        self._reading = True
        self._hold_of_commits: Hold | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, problem: Exception | None) -> None:
        self._connections.discard(self)
        if self._hold_of_commits is not None:
            self._find_switch().release_commits(self._hold_of_commits)
        for task in self._tasks:
            task.cancel()

    def pause_writing(self) -> None:
        self._writable = False
        self._pace()

    def resume_writing(self) -> None:
        self._writable = True
        self._pace()

    async def drop(self) -> None:
        """End every call in hand and close."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.flush()
        self.transport.close()

    def _take_call(self, body: bytes) -> None:
        match call := self._decode(body):
            case WatchCall():
                window = self._watches[call.id] = _Window()
                window.task = self._start(self._follow(call, window))
            case Consumed():
                if call.id in self._watches:
                    self._watches[call.id].give_back(call.bytes)
            case EndWatch():
                if call.id in self._watches:
                    self._watches.pop(call.id).end()
            case _:
                self._calls_in_hand += 1
                self._start(self._answer(call))
                self._pace()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, call: Call) -> None:
        try:
            self.send_frame(encode_frame(await self._perform(call)))
        except WeftError as problem:
            self.send_frame(encode_frame(error_to_answer(call.id, problem)))
        except Exception as problem:  # the caller gets it, whatever it is
            self.send_frame(encode_frame(error_to_answer(call.id, _unforeseen(problem))))
        finally:
            self._calls_in_hand -= 1
            self._pace()

    async def _perform(self, call: Call) -> StoreAnswer:
        store = self._store
        match call:
            case CommitCall():
                revision = await store.commit(call.writes, call.preconditions, idempotency_key=call.idempotency_key)
                return Committed(call.id, revision)
            case GetCall():
                return Got(call.id, await store.get(call.key))
            case ListCall():
                return Listed(call.id, await store.list(call.prefix, limit=call.limit, after=call.after))
            case GrantCall():
                return Granted(call.id, await store.grant(call.name, call.holder, call.ttl_seconds, call.digest))
            case ReleaseCall():
                await store.release(call.name, call.holder)
            case LeasesCall():
                return LeasesFound(call.id, list(await store.leases(call.prefix, digests=call.digests)))
            case KeysCall():
                return KeysKept(call.id, list(await store.kept_keys()))
            case HoldCall():
                await self._hold(call.seconds)
            case SwitchCall():
                await self._find_switch().switch(call.url)
            case CompactCall():
                await store.compact(call.keep_revisions)
        return Done(call.id)

    async def _hold(self, seconds: float) -> None:
        switch = self._find_switch()
        self._hold_of_commits = await switch.hold_commits(seconds)

    def _find_switch(self) -> StoreSwitch:
        if not isinstance(self._store, StoreSwitch):
            raise Unavailable("this store can't be exchanged for another")
        return self._store

    async def _follow(self, call: WatchCall, window: _Window) -> None:
        try:
            async with aclosing(self._store.watch(call.prefix, call.cursor)) as batches:
                async for batch in batches:
                    frame = encode_frame(Watched(call.id, batch))
                    self.send_frame(frame)
                    await window.take(len(frame) - HEAD_BYTES)
        except WeftError as problem:
            self.send_frame(encode_frame(error_to_answer(call.id, problem)))
        except Exception as problem:  # as above
            self.send_frame(encode_frame(error_to_answer(call.id, _unforeseen(problem))))
        finally:
            if self._watches.get(call.id) is window:
                del self._watches[call.id]

    def _pace(self) -> None:
        """Read on only while answers leave and not too many calls are in hand."""
        wanted = self._writable and self._calls_in_hand < _MOST_CALLS_IN_HAND
        if wanted == self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()


class _Window:
    """How much of one watch is under way to a caller that hasn't consumed it yet."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self._bytes = 0
        self._open = asyncio.Event()
        self._open.set()

    async def take(self, count: int) -> None:
        """Count ``count`` bytes as sent, and wait until the window is open again."""
        self._bytes += count
        if self._bytes >= WINDOW_BYTES:
            self._open.clear()
            await self._open.wait()

    def give_back(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < WINDOW_BYTES:
            self._open.set()

    def end(self) -> None:
        if self.task is not None:
            self.task.cancel()


def _unforeseen(problem: Exception) -> WeftError:
    _log.error("a store call failed unexpectedly", exc_info=problem)
    return WeftError(f"the store's server failed: {type(problem).__name__}: {problem}")


def _listen_at(path: Path) -> socket.socket:
    """A bound socket of mode 0600 at ``path``; one that a dead process left there is replaced."""
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        raise StoreUnavailable(
            f"socket path {path} is longer than {_LONGEST_PATH_BYTES} bytes", hint="use a shorter one"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_abandoned(path)
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # nobody can connect before it listens
        listener.setblocking(False)
        return listener
    except OSError as problem:
        listener.close()
        if problem.errno == errno.EADDRINUSE:
            raise StoreUnavailable(
                f"another process serves a store at {path}", hint="stop it, or name another socket"
            ) from problem
        raise StoreUnavailable(f"can't listen at {path}: {problem.strerror}", hint="check the folder") from problem


def _remove_abandoned(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()

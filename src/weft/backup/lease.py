"""Leases: who uses the repository now. While one is there, nothing that its holder may need is deleted."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from types import TracebackType
from typing import Literal

import msgspec

from weft.backup.errors import ObjectMissing, busy, is_full
from weft.backup.storage.contract import Storage, list_own
from weft.contracts.clock import Clock
from weft.objects.errors import BackupLeaseLost, WeftError

RENEW_SECONDS = 300.0
EXPIRY_SECONDS = 3600.0
LOCK_SECONDS = 900.0

Use = Literal["backup", "read", "clean-up"]


class LeaseRecord(msgspec.Struct, kw_only=True):
    """``count`` grows with each renewal: a clean-up sees by it that the holder lives, whatever the clocks say."""

    use: Use
    holder: str
    started: float
    renewed: float
    count: int
    pins: tuple[str, ...] = ()  # backups that its holder reads from
    generation: int = 0


class LockRecord(msgspec.Struct, kw_only=True):
    holder: str
    renewed: float
    released: bool = False


class Lease:
    """One use of the repository, renewed by a thread of its own until it is left.

    It isn't synced to the disk: a power cut that loses it ends its holder too, and a holder on another machine sees that it is gone
    before it publishes anything.

    Who only reads does so in a full repository, too: the lease is written once there is space, and until then what it reads stays
    for as long as packs wait before they are deleted."""

    def __init__(self, storage: Storage, clock: Clock, use: Use, pins: tuple[str, ...] = ()) -> None:
        self.id = secrets.token_hex(16)
        self.generation = max((token for token, _ in list_locks(storage)), default=0)
        self._storage, self._clock = storage, clock
        now = clock.now()
        self._record = LeaseRecord(
            use=use, holder=describe_self(), started=now, renewed=now, count=0, pins=pins, generation=self.generation
        )
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.lost = False
        try:
            storage.put(self.key, msgspec.json.encode(self._record), durable=False)
        except WeftError as problem:
            if use != "read" or not is_full(problem):
                raise
        self._thread = threading.Thread(target=self._keep, name="backup lease", daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        return f"leases/{self.id}"

    def check(self) -> None:
        """Renew. Raises BackupLeaseLost if a clean-up has ended the lease of a writer; a reader's is made again."""
        with self._lock:
            try:
                self._storage.get(self.key)
            except ObjectMissing:
                if self._record.use != "read":
                    self.lost = True
            if self.lost:
                raise BackupLeaseLost(
                    f"the lease of this {self._record.use} in {self._storage.url} is gone",
                    hint="it stood still for more than an hour, so that a clean-up ended it, or somebody deleted it. "
                    "Start it again: what it has stored is found again",
                )
            self._record.count += 1
            self._record.renewed = self._clock.now()
            self._storage.put(self.key, msgspec.json.encode(self._record), durable=False)

    def end(self) -> None:
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with contextlib.suppress(WeftError):  # it expires
            self._storage.delete(self.key, durable=False)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(WeftError):  # the next check says so, and an outage may pass
                self.check()


class CleanupLock:
    """One clean-up at a time. Its token grows, so one that slept and wakes sees that it isn't the newest.

    Two who come together see each other and both leave: this needs nothing but listings that show what was written.
    """

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage, self._clock = storage, clock
        there = list_locks(storage)
        self._refuse_others(there)
        self.token = max((token for token, _ in there), default=0) + 1
        self.key = f"locks/{self.token:08d}-{secrets.token_hex(8)}"
        self._write(released=False)
        try:
            self._refuse_others(list_locks(storage))
        except WeftError:
            self._write(released=True)
            raise
        for _, key in there:
            storage.delete(key)

    def check(self) -> None:
        """Renew. Raises InUse if another clean-up has begun since."""
        for token, key in list_locks(self._storage):
            if token >= self.token and key != self.key and not (record := self._read(key)).released:
                raise busy(self._storage.url, record.holder)
        self._write(released=False)

    def release(self) -> None:
        with contextlib.suppress(WeftError):  # it expires
            self._write(released=True)

    def _refuse_others(self, there: list[tuple[int, str]]) -> None:
        for _, key in there:
            if key == getattr(self, "key", None):
                continue
            record = self._read(key)
            if not record.released and abs(self._clock.now() - record.renewed) < LOCK_SECONDS:
                raise busy(self._storage.url, record.holder)

    def _read(self, key: str) -> LockRecord:
        try:
            return msgspec.json.decode(self._storage.get(key), type=LockRecord)
        except (ObjectMissing, msgspec.MsgspecError):
            return LockRecord(holder="", renewed=0, released=True)

    def _write(self, *, released: bool) -> None:
        record = LockRecord(holder=describe_self(), renewed=self._clock.now(), released=released)
        self._storage.put(self.key, msgspec.json.encode(record))


def list_locks(storage: Storage) -> list[tuple[int, str]]:
    """Token and key of each, the newest last."""
    keys = [found.key for found in list_own(storage, "locks/")]
    return sorted((int(key.removeprefix("locks/").split("-")[0]), key) for key in keys)


def list_leases(storage: Storage) -> dict[str, LeaseRecord | None]:
    """Every lease; None for one that can't be read, which counts as active."""
    leases: dict[str, LeaseRecord | None] = {}
    for found in list_own(storage, "leases/"):
        try:
            leases[found.key.removeprefix("leases/")] = msgspec.json.decode(storage.get(found.key), type=LeaseRecord)
        except msgspec.MsgspecError:
            leases[found.key.removeprefix("leases/")] = None
        except ObjectMissing:
            continue
    return leases


def describe_self() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"

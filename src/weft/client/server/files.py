"""Files by digest of the fabric's servers: contents of images, functions' code, models. One that isn't here comes from a server
that has it, is checked by its digest, and gets its name when it is whole."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from weft.client.answer import Stream
from weft.client.server.others import OtherServers
from weft.contracts.durable_file import keep_file, measure_free
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.kinds.parts.image.work import MOST_IMAGE_BYTES
from weft.objects.errors import DriverFailed, Unavailable, WeftError

PARTIAL = ".copy-"  # how a file's name begins until the file is whole
FOLDER = "weft-folder"  # header of an answer to a server: in which folder of its files this one lies
COPIES = 2  # servers that each image's content lies on, where there are as many
SILENCE_SECONDS = 10.0
_AT_ONCE = 3  # files that are brought
_LOOKS_AT_ONCE = 8
_PIECE_BYTES = 1 << 20


class Whereabouts(NamedTuple):
    """Other servers: those that have a file, and those that may have it and don't answer."""

    has: list[str]
    away: list[str]


class ServerFiles:
    """Those in ``folder``: contents of images, and in its folder CODE_FOLDER code and models."""

    def __init__(self, folder: Path, others: OtherServers) -> None:
        self.folder, self.others = folder, others
        self._bringing: dict[tuple[str, Path | None], asyncio.Task[Path | None]] = {}
        self._slots, self._looks = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(_LOOKS_AT_ONCE)

    async def find(self, sha256: str, *, sent: bool = False) -> Whereabouts:
        """Ask the other servers for the file with this digest; ``sent``: also one that a node has sent, and nobody has checked."""
        async with self._looks:
            asked = await self.others.ask_all("GET", place_of(sha256, sent=sent), headers={"If-None-Match": "*"})
        return Whereabouts([name for name, answer in asked.found.items() if answer.status == 304], asked.away)

    async def bring(self, sha256: str, to: Path | None = None, *, sent: bool = False) -> Path | None:
        """Get the file from a server that has it, once for all who wait; its path: ``to``, or the file's usual one. None: no server
        has it.

        Raises Unavailable while a server that may have it is away, or it can't be copied; DriverFailed (``noSpace``)."""
        key = sha256, to
        if (task := self._bringing.get(key)) is None:
            task = self._bringing[key] = asyncio.ensure_future(self._bring(sha256, to, sent))
            task.add_done_callback(lambda _: self._bringing.pop(key, None))
        return await asyncio.shield(task)

    async def _bring(self, sha256: str, to: Path | None, sent: bool) -> Path | None:
        async with self._slots:
            found, problem = await self.find(sha256, sent=sent), None
            for name in found.has:
                try:
                    return await asyncio.to_thread(self._copy, name, sha256, to, sent)
                except WeftError as failed:
                    problem = failed
        if problem is not None:
            raise problem
        if found.away:
            raise Unavailable(
                f"content {sha256[:12]}… isn't on this server; it may be on {', '.join(found.away)}, which can't be reached",
                reason="serverAway",
                retry_after_seconds=2,
            )
        return None

    def _copy(self, name: str, sha256: str, to: Path | None, sent: bool) -> Path:
        """Copy it from the server ``name``. Raises WeftError."""
        try:
            with self.others.stream(name, place_of(sha256, sent=sent)) as stream:
                stream.limit_silence(SILENCE_SECONDS)
                in_code = stream.headers.get(FOLDER) == CODE_FOLDER
                target = to or (self.folder / CODE_FOLDER if in_code else self.folder) / sha256
                target.parent.mkdir(mode=0o700, exist_ok=True)
                descriptor, work = tempfile.mkstemp(prefix=f"{PARTIAL}{sha256[:12]}.", dir=target.parent)
                try:
                    with os.fdopen(descriptor, "wb") as out:
                        found = _receive(stream, out.fileno(), sha256)
                    if found != sha256:
                        raise Unavailable(f"what server {name} has as {sha256[:12]}… has another digest, {found[:12]}…")
                    keep_file(Path(work), target)
                finally:
                    Path(work).unlink(missing_ok=True)
        except OSError as problem:
            raise Unavailable(f"a file of server {name} can't be kept here: {problem.strerror or problem}") from None
        return target


def _receive(stream: Stream, out: int, sha256: str) -> str:
    """Write what comes; its digest. Raises Unavailable, OSError, DriverFailed."""
    digest, left = hashlib.sha256(), MOST_IMAGE_BYTES
    while piece := stream.read(_PIECE_BYTES):
        left -= len(piece)
        if left < 0 or measure_free(out) < len(piece):
            raise DriverFailed(
                f"content {sha256[:12]}… of another server doesn't fit on this server's disk",
                reason="noSpace",
                hint="free space there, or delete images",
            )
        digest.update(piece)
        written = 0
        while written < len(piece):
            written += os.write(out, piece[written:])
    return digest.hexdigest()


def place_of(sha256: str, *, sent: bool) -> str:
    """The path at which servers give the file with this digest."""
    return f"/v1/blobs/{sha256}" + ("?sent=1" if sent else "")


def choose_homes(sha256: str, servers: Iterable[str]) -> list[str]:
    """The servers that keep an image's content: the same at each server, and few others when a server comes or goes."""
    return sorted(servers, key=lambda name: hashlib.sha256(f"{name}/{sha256}".encode()).digest())[:COPIES]

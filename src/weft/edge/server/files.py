"""The files of models on this node: fetched from the server by their digest, piece by piece, and kept for the time without it.

Each lies under its digest, whole or not at all. Functions block: they are for threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.contracts.durable_file import keep_file
from weft.objects.code_limits import MOST_BYTES
from weft.objects.errors import DriverFailed, TooLarge, WeftError

PIECE_BYTES = 1 << 20
PARTIAL = ".partial"


class ModelFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole: set[str] = set()  # digests of files that were found whole by this process

    def find(self, sha256: str) -> str:
        """The path of the file; "": it isn't there, or isn't what its digest says."""
        path = self._folder / sha256
        if sha256 in self._whole and path.exists():
            return str(path)
        try:
            with path.open("rb") as source:
                if hashlib.file_digest(source, "sha256").hexdigest() != sha256:
                    return ""
        except OSError:
            return ""
        self._whole.add(sha256)
        return str(path)

    def fetch(self, client: Client, sha256: str) -> None:
        """Raises WeftError where the server doesn't give it, or gives something else, and where the disk has no space for it. What
        came until the line was cut is kept, and the next call goes on from there."""
        partial = self._folder / f"{sha256}{PARTIAL}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                _fetch_rest(client, sha256, partial)
            except (TooLarge, DriverFailed, OSError):  # what there is of it is worth nothing, or the disk is full
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise
            keep_file(partial, self._folder / sha256)
            self._whole.add(sha256)
        except OSError as problem:
            raise DriverFailed(f"the file of the model can't be kept: {problem.strerror or problem}") from None

    def forget(self, but: Iterable[str], wanted: Iterable[str] = ()) -> None:
        """Remove all files but those with these paths, and those with the digests ``wanted``, whole or in part."""
        kept = set(but)
        for sha256 in wanted:
            kept |= {str(self._folder / sha256), str(self._folder / f"{sha256}{PARTIAL}")}
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self._folder)):
                if entry.path not in kept:
                    os.unlink(entry.path)
                    self._whole.discard(entry.name)


def _fetch_rest(client: Client, sha256: str, partial: Path) -> None:
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as out:
        digest, size = _read_whole_pieces(out)
        while True:
            asked = {"Range": f"bytes={size}-{size + PIECE_BYTES - 1}"}
            answer = client.http.request("GET", f"/v1/blobs/{sha256}", headers=asked, timeout_seconds=30.0)
            if answer.status == 416:  # it ended with the piece before
                break
            raise_problem(answer)
            digest.update(answer.body)
            size += len(answer.body)
            if size > MOST_BYTES:
                raise TooLarge(f"the file of the model is more than {MOST_BYTES >> 20} MiB")
            out.write(answer.body)
            if len(answer.body) < PIECE_BYTES:
                break
    if digest.hexdigest() != sha256:
        raise DriverFailed("the server's file of the model isn't what its digest says")


def _read_whole_pieces(out: BinaryIO) -> tuple[Any, int]:
    """The digest and the size of the whole pieces that are there; the rest is cut off, and what is written next follows them."""
    digest, size = hashlib.sha256(), 0
    while size < MOST_BYTES and len(piece := out.read(PIECE_BYTES)) == PIECE_BYTES:
        digest.update(piece)
        size += PIECE_BYTES
    out.seek(size)
    out.truncate()
    return digest, size


def describe_failure(problem: WeftError) -> str:
    return f"its file can't be fetched: {problem.message}"[:300]

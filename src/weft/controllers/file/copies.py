"""Keeps the files by digest of one server: brings from the others what belongs here, and removes what nothing needs any more.

Each server does so for itself, also one that doesn't lead. Reads images, functions, their versions, models, allocations, and the
folder; writes the folder. Woken by these objects, and by time. An image's content goes when the last image that has it is
deleted, never because no image explains it; one that was deleted while this server was away goes when all servers answer and no
other has it either. Code and models go when nothing has named them for an hour: a commit names them only after the upload. So do
the files that say in which project it was uploaded, and what is left of uploads, copies, and images that nodes sent here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from weft.client.server.files import PARTIAL, ServerFiles
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.contracts.wakeup import wait_for_event
from weft.controllers.file.plan import find_at_home, find_made, find_named, is_used
from weft.informer.cache import Cache
from weft.informer.view import Changed, make_view
from weft.kinds.image import ImageStatus
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.kinds.parts.image.work import FETCHING, SENT
from weft.objects.errors import StoreUnavailable, WeftError
from weft.objects.identity import kind_prefix

KINDS = ("image", "function", "functionversion", "model", "upgrade", "server")
LOOK_SECONDS = 60.0
AGAIN_SECONDS = 1.0  # after which a file that couldn't be brought is tried again; then twice that, and so on
GATHER_SECONDS = 0.5  # after a change, for which others are awaited
CLEAN_SECONDS = 600.0
YOUNG_SECONDS = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class FileCopies:
    """Keeps ``folder`` for server ``name``, which reaches the others by ``files``. ``now`` is the file system's clock."""

    def __init__(
        self,
        folder: Path,
        name: str,
        files: ServerFiles,
        store: Store,
        cache: Cache,
        clock: Clock,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._name, self._files, self._store = folder, name, files, store
        self._cache, self._clock, self._now = cache, clock, now
        self._woken = asyncio.Event()
        self._copying: dict[Path, asyncio.Task[None]] = {}
        self._again: dict[Path, tuple[float, float]] = {}  # after how many seconds a file is tried again, and when
        self._said: set[str] = set()  # digests that couldn't be brought, and the log has it

    async def run(self) -> None:
        """Keep them until cancelled."""
        unsubscribe, cleaned = self._cache.subscribe(self._notice, KINDS), self._clock.elapsed()
        try:
            while True:
                self._woken.clear()  # what changes from here on has a round of its own
                pause = AGAIN_SECONDS if await self._begin_copies() else LOOK_SECONDS
                if self._clock.elapsed() - cleaned >= CLEAN_SECONDS:
                    with suppress(StoreUnavailable):
                        await self.clean()
                        cleaned = self._clock.elapsed()
                await wait_for_event(self._clock, self._woken, pause)
                await self._clock.sleep(GATHER_SECONDS)
        finally:
            unsubscribe()
            for task in self._copying.values():
                task.cancel()

    async def _begin_copies(self) -> bool:
        """Begin to get from the other servers what belongs here; whether anything is missing. Nothing waits for a large file."""
        serving, view = self._files.others.list_serving(), self._cache.view
        code, at_home = find_named(view), find_at_home(view, self._name, serving)
        missing = await asyncio.to_thread(self._list_missing, code, at_home) if serving else []
        now = self._clock.elapsed()
        self._again = {path: again for path, again in self._again.items() if path in missing}
        for path in missing:
            if path not in self._copying and self._again.get(path, (0.0, 0.0))[1] <= now:
                self._copying[path] = task = asyncio.create_task(self._copy(path))
                task.add_done_callback(lambda _, path=path: self._copying.pop(path, None))  # type: ignore[misc]
        return bool(missing)

    async def clean(self) -> None:
        """Remove what nothing needs, by the store's word, not by a copy that may be old. Raises StoreUnavailable."""
        view, before = make_view(), self._now() - YOUNG_SECONDS
        for kind in (*KINDS, "allocation"):
            for entry in (await self._store.list(kind_prefix(kind))).entries:
                view.put(entry.key, entry.value, entry.revision)
        named = find_named(view)
        await asyncio.to_thread(remove_unnamed, self._folder / CODE_FOLDER, named, before)
        await asyncio.to_thread(remove_sent, self._folder, find_made(view), before)
        for sha256 in await asyncio.to_thread(list_old, self._folder, before):
            if is_used(view, sha256):
                continue
            found = await self._files.find(sha256)
            is_alone = self._files.others.list_serving() and not found.has and not found.away
            if is_alone and not is_used(self._cache.view, sha256):
                await asyncio.to_thread(remove, self._folder, sha256)

    def _notice(self, changes: Sequence[Changed]) -> None:
        self._woken.set()
        for change in changes:
            old = change.old
            if change.kind == "image" and old is not None and (change.new is None or change.new.uid != old.uid):
                sha256 = old.status(ImageStatus).sha256
                if sha256 and not is_used(self._cache.view, sha256):
                    asyncio.get_running_loop().run_in_executor(None, remove, self._folder, sha256)

    def _list_missing(self, code: set[str], at_home: set[str]) -> list[Path]:
        paths = [*(self._folder / CODE_FOLDER / sha256 for sha256 in code), *(self._folder / one for one in at_home)]
        return sorted(path for path in paths if not path.exists())

    async def _copy(self, path: Path) -> None:
        sha256 = path.name
        try:
            found = await self._files.bring(sha256, path)
        except WeftError as problem:
            if sha256 not in self._said:
                _log.warning("a copy of content %s… can't be kept here: %s", sha256[:12], problem.message)
            self._said.add(sha256)
        else:
            self._said.discard(sha256)
            if found is not None:
                return
        pause = min(2 * self._again.get(path, (AGAIN_SECONDS / 2, 0.0))[0], LOOK_SECONDS)
        self._again[path] = pause, self._clock.elapsed() + pause


def remove(folder: Path, sha256: str) -> None:
    """Remove an image's content from ``folder``, if it is there."""
    (folder / sha256).unlink(missing_ok=True)


def remove_sent(folder: Path, made: set[str], before: float) -> None:
    """Remove what nodes sent ``before`` for images that aren't among those that are ``made`` now, by their uids."""
    for path in folder.glob(f"{SENT}*"):
        with suppress(OSError):
            if path.name.removeprefix(SENT).partition(".")[0] not in made and path.stat().st_mtime < before:
                path.unlink()


def list_old(folder: Path, before: float) -> list[str]:
    """The digests of contents that were written ``before``; partial copies of that age go."""
    found = []
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            with suppress(OSError):
                if not entry.is_file(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_mtime >= before:
                    continue
                if entry.name.startswith((PARTIAL, f"{FETCHING}gone-")):
                    os.unlink(entry.path)
                elif _DIGEST.fullmatch(entry.name):
                    found.append(entry.name)
    return sorted(found)


def remove_unnamed(folder: Path, named: set[str], before: float) -> list[str]:
    """Remove what isn't ``named`` and was last touched ``before``; the names of what went."""
    gone = []
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return []
    for entry in entries:
        try:
            if entry.name not in named and entry.stat(follow_symlinks=False).st_mtime < before:
                os.unlink(entry.path)
                gone.append(entry.name)
        except OSError:  # the next round tries again
            continue
    return sorted(gone)

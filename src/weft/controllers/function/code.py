"""Removes functions' code that no function's spec, no serving code and no version names, and models' files that no model names.

Reads functions, their versions, models and the folder; removes files. What was uploaded or named within the last hour stays: a
commit names it only after the upload. So do the files that say in which project it was uploaded. Partial uploads of that age go
too. Woken by the clock.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from weft.controllers.asking import Asking, Later
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import View
from weft.kinds.function import FunctionSpec, FunctionStatus
from weft.kinds.function_version import FunctionVersionSpec
from weft.kinds.model import ModelSpec

EVERY_SECONDS = 600.0
YOUNG_SECONDS = 3600.0


class Code(Asking):
    """Cleans ``folder`` every ten minutes. ``now`` is the file system's clock."""

    name = "code"
    always = ("code",)

    def __init__(self, folder: Path, leadership: LeaderLease, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._leadership = leadership
        self._now = now

    async def take_turn(self, key: str) -> Later:
        named = find_named(self._leadership.cache.view)
        await asyncio.to_thread(remove_unnamed, self._folder, named, self._now() - YOUNG_SECONDS)
        return {key: EVERY_SECONDS}


def find_named(view: View) -> set[str]:
    """The digests of all code that a function or a version needs, and of the files of models."""
    named: set[str] = set()
    for item in view.of_kind("function").values():
        named.add(item.spec(FunctionSpec).code)
        serving = item.status(FunctionStatus).serving
        named |= {serving.code} if serving is not None else set()
    for item in view.of_kind("functionversion").values():
        named.add(item.spec(FunctionVersionSpec).code)
    named |= {item.spec(ModelSpec).file for item in view.of_kind("model").values()}
    return named - {""}


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

"""The folder of a server that begins a fabric or joins one: empty before, and as it was when that fails."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.launch.server.lock import FILE as LOCK
from weft.launch.server.lock import hold_server
from weft.launch.server.unfinished import FILE as UNFINISHED
from weft.objects.errors import InvalidInput

_ANYWHERE = (LOCK, "lost+found")
_BEGUN = re.compile(r"\.(.+)\.\d+")  # a file that ``write_durably`` hasn't given its name
_MOST_NAMED = 3


@contextmanager
def new_folder(state: Path) -> Iterator[None]:
    """Make the folder ``state`` and hold it; if the work in it fails, what it has made there is removed. Raises InvalidInput when
    it can't be made, and InUse while a server runs in it."""
    is_new = not state.exists()
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = set(os.listdir(state))
    except OSError as problem:
        raise InvalidInput(
            f"--state {state} can't be made a folder: {problem.strerror}", field="state", hint="give another --state"
        ) from None
    with hold_server(state):
        try:
            yield
        except BaseException:
            for name in set(os.listdir(state)) - before:
                _remove(state / name)
            if is_new:
                state.rmdir()
            raise


def refuse_foreign(state: Path, known: Collection[str] = ()) -> None:
    """Raises InvalidInput when the folder has entries other than ``known``: they would be taken for the server's. Removes what is
    left of those that a killed process was writing."""
    foreign = []
    for name in sorted(set(os.listdir(state)) - {*_ANYWHERE, *known}):
        begun = _BEGUN.fullmatch(name)
        if begun and begun[1] in (*known, UNFINISHED):
            (state / name).unlink()
        else:
            foreign.append(name)
    if foreign:
        more = f" and {len(foreign) - _MOST_NAMED} more" if len(foreign) > _MOST_NAMED else ""
        raise InvalidInput(
            f"--state {state} isn't empty: it has {', '.join(foreign[:_MOST_NAMED])}{more}",
            field="state",
            hint="give an empty folder, or one that doesn't exist",
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()

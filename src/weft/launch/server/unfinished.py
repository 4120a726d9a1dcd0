"""The mark of a command that has begun in a state folder and not finished, ``STATE/unfinished``: no server starts there."""

from __future__ import annotations

from pathlib import Path

import msgspec

from weft.contracts.durable_file import sync_folder, write_durably
from weft.objects.errors import IllegalTransition

FILE = "unfinished"


class Unfinished(msgspec.Struct, frozen=True):
    """``command``, like ``weft server restore``, has begun; ``remedy`` is what a person does then."""

    command: str
    remedy: str


def note_begun(state: Path, command: str, remedy: str) -> None:
    """Write it down, before the first change. Raises OSError."""
    write_durably(state / FILE, msgspec.json.encode(Unfinished(command, remedy)))


def note_finished(state: Path) -> None:
    """Remove the mark, after the last change, or when all is as it was."""
    (state / FILE).unlink(missing_ok=True)
    sync_folder(state)


def read_unfinished(state: Path) -> Unfinished | None:
    """The command that hasn't finished in ``state``; None when all have."""
    path = state / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Unfinished)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError:  # it is there: that counts
        return Unfinished("a command", f"run weft server restore, init or join again for {state.absolute()}")


def refuse_unfinished(state: Path) -> None:
    """Raises IllegalTransition where a command hasn't finished: the store there may be empty, or a part of what it was."""
    if (found := read_unfinished(state)) is not None:
        raise IllegalTransition(f"{found.command} was begun in {state} and has not finished", hint=found.remedy)

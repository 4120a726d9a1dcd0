"""A server's removal from its fabric, in ``STATE/removed``: once it has heard of it, it serves no more."""

from __future__ import annotations

from pathlib import Path

from weft.contracts.durable_file import write_durably
from weft.launch.server.membership.identity import keep_identity
from weft.objects.errors import IllegalTransition

FILE = "removed"


class Removed(IllegalTransition):
    """The server isn't one of its fabric any more."""


def note_removal(state: Path) -> None:
    write_durably(state / FILE, b"")


def is_removed(state: Path) -> bool:
    return (state / FILE).exists()


def refuse_removed(state: Path) -> None:
    """Raises Removed if the server in ``state`` was."""
    if is_removed(state):
        mine = " (context.json in it may be yours: copy it first)" if (state / "context.json").exists() else ""
        raise Removed(
            f"server {keep_identity(state, None).name} was removed from its fabric, and has stopped",
            hint=f"to let it join again: remove {state.absolute()}{mine}, then weft server join with a new token",
        )

"""The functions that this node serves itself, in a file that outlives the agent and the machine. Their recipes hold environment
variables, so only root may read it; tickets aren't kept, since they expire."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from weft.contracts.driver.function import Blob, Recipe
from weft.contracts.durable_file import write_durably
from weft.protocol.invocations import LocalFunction

log = logging.getLogger("weft.agent")
FILE = "local.json"
_MOST_BYTES = 32 << 20


class _KeptFunctions(msgspec.Struct, frozen=True):
    functions: list[LocalFunction]
    version: int = 1


def read_kept(folder: Path) -> list[LocalFunction]:
    """Those of the last list that was written; none if there is no file, or a damaged one, which is logged."""
    path = folder / FILE
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        kept = msgspec.json.decode(path.read_bytes(), type=_KeptFunctions)
        if kept.version != 1:
            raise ValueError(f"it is of version {kept.version}")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
        log.warning(
            "functions: %s can't be read, so the node serves none itself until the server answers: %s", path, problem
        )
        return []
    return kept.functions


def write_kept(folder: Path, functions: Iterable[LocalFunction]) -> None:
    """Keep these in place of what was kept. Raises OSError."""
    kept = [msgspec.structs.replace(one, recipe=_without_tickets(one.recipe)) for one in functions]
    write_durably(folder / FILE, msgspec.json.encode(_KeptFunctions(kept)))


def _without_tickets(recipe: Recipe) -> Recipe:
    def strip(blob: Blob | None) -> Blob | None:
        return None if blob is None else msgspec.structs.replace(blob, ticket="")

    parts = {name: strip(getattr(recipe, name)) for name in ("base", "code", "archive")}
    return msgspec.structs.replace(recipe, **parts, registry_ticket="")

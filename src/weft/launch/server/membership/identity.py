"""A server's name in its fabric, and the uid of its state folder, in ``STATE/server.json``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from weft.contracts.durable_file import write_durably
from weft.objects.errors import InUse, InvalidInput
from weft.objects.identity import ServerIdentity, check_name, new_uid

FILE = "server.json"
FIRST = "s1"  # of the only server of most fabrics


def keep_identity(state: Path, name: str | None) -> ServerIdentity:
    """Read who the server in ``state`` is; a new one is called ``name``, or FIRST. Raises InUse for another name than it has."""
    path = state / FILE
    if path.exists():
        try:
            known = msgspec.json.decode(path.read_bytes(), type=ServerIdentity)
        except msgspec.MsgspecError as problem:
            raise InvalidInput(f"{path} can't be read: {problem}", hint="restore it, or remove it") from None
        if name not in (None, known.name):
            raise InUse(
                f"the server in {state} is called {known.name}, not {name}",
                hint=f"--server {known.name}, or another --state",
            )
        return known
    made = ServerIdentity(name or FIRST, new_uid())
    check_name(made.name, "--server")
    write_durably(path, msgspec.json.encode(made))
    return made

"""Durable copies of what the server said: this node's allocations; its networks' neighbours, published ports, ranges.

Written and synced before anything is done about them, so that an agent that starts without a server keeps its guests.
Reads and writes ``<state>/allocations/<short id>.json`` and ``<state>/network.json``.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from weft.agent.known import Memory
from weft.contracts.durable import sync_folder, write_durably
from weft.contracts.network import Endpoint, Forward
from weft.objects.envelope import Envelope

log = logging.getLogger("weft.agent")


class Copy(msgspec.Struct, frozen=True):
    """An allocation as it was read last, and what this node did about it."""

    allocation: Envelope
    memory: Memory


class Surroundings(msgspec.Struct, frozen=True):
    """Who else is in each network (by its uid), which ports are published, and which address ranges the fabric's
    networks have: as told last."""

    endpoints: dict[str, list[Endpoint]] = {}
    forwards: list[Forward] = []
    ranges_version: str = ""
    ranges: list[str] = []


class Copies:
    """The copies in one agent's state folder."""

    def __init__(self, state_dir: str) -> None:
        self._folder = Path(state_dir) / "allocations"
        self._surroundings = Path(state_dir) / "network.json"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def save(self, id: str, copy: Copy) -> None:
        """Keep ``copy`` durably: once this returns a power cut can't lose it."""
        write_durably(self._folder / f"{id}.json", msgspec.json.encode(copy))

    def remove(self, id: str) -> None:
        """Absent is fine."""
        (self._folder / f"{id}.json").unlink(missing_ok=True)
        sync_folder(self._folder)

    def load(self) -> list[Copy]:
        """All copies; one that can't be read is left where it is, told in the log, and its guest kept as an orphan."""
        copies = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                copies.append(msgspec.json.decode(path.read_bytes(), type=Copy))
            except (OSError, msgspec.MsgspecError) as problem:
                log.error("%s can't be read, its guest is left alone: %s", path, problem)
        return copies

    def save_surroundings(self, surroundings: Surroundings) -> None:
        write_durably(self._surroundings, msgspec.json.encode(surroundings))

    def load_surroundings(self) -> Surroundings:
        """What was told last, or nothing."""
        try:
            return msgspec.json.decode(self._surroundings.read_bytes(), type=Surroundings)
        except FileNotFoundError:
            return Surroundings()
        except (OSError, msgspec.MsgspecError) as problem:
            log.error("%s can't be read: %s", self._surroundings, problem)
            return Surroundings()

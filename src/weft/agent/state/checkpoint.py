"""The files that keep what the server sent: this node's allocations; its networks' neighbours, published ports, ranges.

Written and synced before anything is done about them, so that an agent that starts without a server keeps its guests.
Reads and writes ``<state>/allocations/<short id>.json``, ``<state>/network.json`` and ``<state>/history``: the server's
history that the last list of allocations was of; ``<state>/departures/<short id>.json``: guests that other nodes took over,
and those that came by a migration and were removed here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import msgspec

from weft.agent.problem import is_full
from weft.agent.state.allocation import Checkpoint, MigrationState
from weft.contracts.driver.network import Endpoint, Forward
from weft.contracts.durable_file import sync_folder, write_durably
from weft.kinds.allocation import AllocatedNic
from weft.objects.envelope import Envelope, decode_envelope, encode_envelope
from weft.objects.errors import DriverFailed


class CheckpointFailed(DriverFailed):
    """A file can't be written; the one before it stands."""


log = logging.getLogger("weft.agent")
MOST_DEPARTURES = 10_000


class _Kept(msgspec.Struct):
    """A checkpoint as it lies in its file: the allocation may be one that a newer weft wrote."""

    allocation: msgspec.Raw
    checkpoint: Checkpoint


class Hop(msgspec.Struct, frozen=True):
    """A NIC whose guest leaves this node (``out``) or comes (``in``) while it runs; ``peer`` is the other node's
    address, "" while it isn't known. ``switched``: the guest is there, or here, whatever the server says yet."""

    way: Literal["out", "in"]
    nic: AllocatedNic
    peer: str = ""
    switched: bool = False


class Surroundings(msgspec.Struct, frozen=True):
    """Who else is in each network (by its uid), which ports are published, which address ranges the fabric's networks
    and its nodes have: as sent last; and whose guests came or left while they ran."""

    endpoints: dict[str, list[Endpoint]] = {}
    forwards: list[Forward] = []
    ranges_version: str = ""
    ranges: list[str] = []
    node_ranges: list[str] = []
    hops: list[Hop] = []


class CheckpointStore:
    """The files in one agent's state folder."""

    def __init__(self, state_dir: str) -> None:
        self._folder = Path(state_dir) / "allocations"
        self._surroundings = Path(state_dir) / "network.json"
        self._epoch = Path(state_dir) / "history"
        self._departures = Path(state_dir) / "departures"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def save(self, id: str, allocation: Envelope, checkpoint: Checkpoint) -> None:
        """Keep both durably: once this returns a power cut can't lose them. Raises CheckpointFailed (``noSpace``)."""
        kept = _Kept(msgspec.Raw(encode_envelope(allocation)), checkpoint)
        _write(self._folder / f"{id}.json", msgspec.json.encode(kept))

    def remove(self, id: str) -> None:
        """Absent is fine."""
        (self._folder / f"{id}.json").unlink(missing_ok=True)
        sync_folder(self._folder)

    def load(self) -> list[tuple[Envelope, Checkpoint]]:
        """All that were saved; one that can't be read is left where it is, and its guest kept as an orphan."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
                found.append((decode_envelope(kept.allocation), kept.checkpoint))
            except (OSError, msgspec.MsgspecError) as problem:
                log.error("%s can't be read, its guest is left alone: %s", path, problem)
        return found

    def save_departure(self, id: str, migration: MigrationState) -> None:
        """Keep durably that the guest of this allocation was taken over, elsewhere or here. Raises CheckpointFailed."""
        self._departures.mkdir(mode=0o700, exist_ok=True)
        _write(self._departures / f"{id}.json", msgspec.json.encode(migration))

    def load_departure(self, id: str) -> MigrationState | None:
        """What was kept of it; None if its guest neither was sent away nor came by a move."""
        path = self._departures / f"{id}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=MigrationState)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as problem:
            log.error("%s can't be read: %s", path, problem)
            return None

    def drop_departures(self) -> None:
        """Of too many the oldest are forgotten."""
        found = sorted(self._departures.glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))
        for path in found[:-MOST_DEPARTURES]:
            path.unlink(missing_ok=True)

    def save_epoch(self, epoch: str) -> None:
        """Keep it durably. Raises CheckpointFailed."""
        _write(self._epoch, epoch.encode())

    def load_epoch(self) -> str:
        """What was kept last, or nothing."""
        try:
            return self._epoch.read_text()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeError) as problem:
            log.error("%s can't be read: %s", self._epoch, problem)
            return "unread"  # no history at all: the server waits until this node has heard its own

    def save_surroundings(self, surroundings: Surroundings) -> None:
        """Keep them durably. Raises CheckpointFailed."""
        _write(self._surroundings, msgspec.json.encode(surroundings))

    def load_surroundings(self) -> Surroundings:
        """What was told last, or nothing."""
        try:
            return msgspec.json.decode(self._surroundings.read_bytes(), type=Surroundings)
        except FileNotFoundError:
            return Surroundings()
        except (OSError, msgspec.MsgspecError) as problem:
            log.error("%s can't be read: %s", self._surroundings, problem)
            return Surroundings()


def _write(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as problem:
        full = is_full(problem)
        raise CheckpointFailed(
            f"{path} can't be written: {problem.strerror}",
            reason="noSpace" if full else None,
            hint="free some space on the node's disk" if full else None,
        ) from problem

"""The files of the agent's state: this node's allocations; its networks' neighbours, published ports and ranges.

Written and synced before any action, so that an agent that starts without a server keeps its guests. Reads and writes
``<state>/allocations/<short id>.json``; ``<state>/network.json``; ``<state>/history``, the server's history of the last list of
allocations; and ``<state>/departures/<short id>.json``, for guests that other nodes took over, and those that came by a migration
and were removed here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import msgspec

from weft.agent.problem import is_full
from weft.agent.state.allocation import Checkpoint, MigrationState
from weft.agent.state.service import ServedAddress
from weft.contracts.driver.network import Endpoint, Forward
from weft.contracts.durable_file import sync_folder, write_durably
from weft.kinds.allocation import AllocatedNic
from weft.objects.envelope import Envelope, decode_envelope, encode_envelope
from weft.objects.errors import DriverFailed
from weft.protocol.report import NO_PLACE, NetworkRules, ServerPlace


class CheckpointFailed(DriverFailed):
    """A file can't be written; its last version stays."""


log = logging.getLogger("weft.agent")
MOST_DEPARTURES = 10_000


class _KeptAllocation(msgspec.Struct):
    """A checkpoint's file: a newer weft may have written its allocation."""

    allocation: msgspec.Raw
    checkpoint: Checkpoint


class Hop(msgspec.Struct, frozen=True):
    """A NIC whose guest leaves this node or comes to it by a live migration."""

    way: Literal["out", "in"]
    nic: AllocatedNic
    peer: str = ""  # the other node's address; "" while unknown
    switched: bool = False  # the guest has left or arrived, even if the server doesn't know yet


class Surroundings(msgspec.Struct, frozen=True):
    """The networks around this node, as the server sent them last, and the hops."""

    endpoints: dict[str, list[Endpoint]] = {}  # by the network's uid
    forwards: list[Forward] = []  # published ports
    ranges_version: str = ""
    ranges: list[str] = []  # of all networks
    node_ranges: list[str] = []
    server: ServerPlace = NO_PLACE  # as it reports itself
    located: ServerPlace = NO_PLACE  # as this node finds it
    rules: dict[str, NetworkRules] = {}  # by the network's uid
    hops: list[Hop] = []
    services: dict[str, list[ServedAddress]] = {}  # by the network's uid
    egress: dict[str, AllocatedNic] = {}  # the node's own NICs, by the network's uid


class CheckpointStore:
    """The files in one agent's state folder."""

    def __init__(self, state_dir: str) -> None:
        self._folder = Path(state_dir) / "allocations"
        self._surroundings = Path(state_dir) / "network.json"
        self._epoch = Path(state_dir) / "history"
        self._departures = Path(state_dir) / "departures"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def save(self, id: str, allocation: Envelope, checkpoint: Checkpoint) -> None:
        """Save both durably: once this returns, a power cut can't lose them. Raises CheckpointFailed (``noSpace``)."""
        kept = _KeptAllocation(msgspec.Raw(encode_envelope(allocation)), checkpoint)
        _write(self._folder / f"{id}.json", msgspec.json.encode(kept))

    def remove(self, id: str) -> None:
        """Remove the checkpoint, which may be absent."""
        (self._folder / f"{id}.json").unlink(missing_ok=True)
        sync_folder(self._folder)

    def load(self) -> list[tuple[Envelope, Checkpoint]]:
        """All saved checkpoints; an unreadable file stays, and its guest is kept as an orphan."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_KeptAllocation)
                found.append((decode_envelope(kept.allocation), kept.checkpoint))
            except (OSError, msgspec.MsgspecError) as problem:
                log.error("can't read %s, so its guest is kept as it is: %s", path, problem)
        return found

    def save_departure(self, id: str, migration: MigrationState) -> None:
        """Save durably that the guest of this allocation was taken over, elsewhere or here. Raises CheckpointFailed."""
        self._departures.mkdir(mode=0o700, exist_ok=True)
        _write(self._departures / f"{id}.json", msgspec.json.encode(migration))

    def load_departure(self, id: str) -> MigrationState | None:
        """The saved migration; None if its guest neither left nor came by one."""
        path = self._departures / f"{id}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=MigrationState)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as problem:
            log.error("can't read %s: %s", path, problem)
            return None

    def drop_departures(self) -> None:
        """Remove the oldest departures beyond MOST_DEPARTURES."""
        found = sorted(self._departures.glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))
        for path in found[:-MOST_DEPARTURES]:
            path.unlink(missing_ok=True)

    def save_epoch(self, epoch: str) -> None:
        """Save it durably. Raises CheckpointFailed."""
        _write(self._epoch, epoch.encode())

    def load_epoch(self) -> str:
        """The last saved history, or ""."""
        try:
            return self._epoch.read_text()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeError) as problem:
            log.error("can't read %s: %s", self._epoch, problem)
            return "unread"  # no server's history: the server waits until this node has read its own

    def save_surroundings(self, surroundings: Surroundings) -> None:
        """Save them durably. Raises CheckpointFailed."""
        _write(self._surroundings, msgspec.json.encode(surroundings))

    def load_surroundings(self) -> Surroundings:
        """The last saved ones, or empty ones."""
        try:
            return msgspec.json.decode(self._surroundings.read_bytes(), type=Surroundings)
        except FileNotFoundError:
            return Surroundings()
        except (OSError, msgspec.MsgspecError) as problem:
            log.error("can't read %s: %s", self._surroundings, problem)
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

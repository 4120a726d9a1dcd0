"""What a run of this benchmark has measured so far, so that one that is interrupted goes on with the next row."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess

import msgspec

from benchmarks.measurement import ROOT, Figure
from weft.transfer.calibration import EndedMigration

PLACE = ROOT / ".weft" / "bench-migration.json"


class Kept(msgspec.Struct):
    """Of one state of the code and one choice of settings, ``of``. ``rows`` are a load's figures over a link, by their name;
    ``compared`` and ``foreseen`` the moves that the plans of either part learn from; ``guests`` how many of the second part's
    are done, ``converged`` how many of their moves, out of ``moves``."""

    of: str
    rows: dict[str, list[Figure]] = {}
    compared: list[EndedMigration] = []
    foreseen: list[EndedMigration] = []
    guests: int = 0
    migrations: int = 0
    converged: int = 0

    def save(self) -> None:
        PLACE.parent.mkdir(exist_ok=True)
        PLACE.write_bytes(msgspec.json.encode(self))

    @staticmethod
    def forget() -> None:
        PLACE.unlink(missing_ok=True)


def read_kept(settings: str) -> Kept:
    """Where to go on, or a fresh beginning."""
    state = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "diff", "HEAD", "--", "src", "benchmarks"], cwd=ROOT, capture_output=True).stdout
    of = f"{state} {hashlib.sha256(changed).hexdigest()[:12]} {settings}"
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        kept = msgspec.json.decode(PLACE.read_bytes(), type=Kept)
        if kept.of == of:
            return kept
    return Kept(of)

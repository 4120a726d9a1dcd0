"""Where a soak stands between two runs of it, a file each: what was begun goes on, what broke is kept to be looked at."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from benchmarks.measurement import ROOT

BROKEN = ROOT / ".weft" / "soak-broken"


class Seeded(Protocol):
    """A soak's own record; all of it but the seed has a value to begin with."""

    seed: int

    def __init__(self, seed: int) -> None: ...


P = TypeVar("P", bound=Seeded)


def read_progress(path: Path, kind: type[P], unfinished: Callable[[P], bool]) -> P:
    """Where to go on, or a fresh beginning: with the seed of ``WEFT_SOAK_SEED``, else one that is drawn."""
    seed = os.environ.get("WEFT_SOAK_SEED")
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        kept = msgspec.json.decode(path.read_bytes(), type=kind)
        if unfinished(kept) and seed in (None, str(kept.seed)):
            return kept
    return kind(int(seed) if seed else random.randrange(10**6))


def keep_broken(path: Path, progress: Seeded, problem: str, logs: Path) -> None:
    """Say what broke; keep the cluster's logs, and the progress that tells of it."""
    print(f"  broken: {problem}", flush=True)
    shutil.rmtree(BROKEN, ignore_errors=True)
    shutil.copytree(logs, BROKEN)
    path.write_bytes(msgspec.json.encode(progress))

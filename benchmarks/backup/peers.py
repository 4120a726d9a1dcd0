"""The bytes that borg and restic store of the same disks, where they are installed: a disk, a clone of it, and 1 % changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import msgspec

PASSWORD = "bench"


class Stored(msgspec.Struct, frozen=True):
    bytes: int  # of all three
    seconds: float  # of the last


def store_with_borg(repository: Path, folder: Path, name: str) -> None:
    """With chunks of a fixed size, as ours, encrypted."""
    environment = {**os.environ, "BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(folder / "borg-home")}
    words = (
        "borg",
        "create",
        "--chunker-params",
        "fixed,65536",
        "--compression",
        "zstd,3",
        "--files-cache",
        "disabled",
    )
    if not repository.exists():
        subprocess.run(
            ["borg", "init", "--encryption", "repokey-blake2", str(repository)],
            env=environment,
            check=True,
            capture_output=True,
        )
    subprocess.run(
        [*words, f"{repository}::{name}", "disk.raw"], cwd=folder, env=environment, check=True, capture_output=True
    )


def store_with_restic(repository: Path, folder: Path, name: str) -> None:
    """With chunks as its own rules cut them, encrypted."""
    environment = {**os.environ, "RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(folder / "restic-cache")}
    words = ("restic", "--quiet", "--repo", str(repository))
    if not repository.exists():
        subprocess.run([*words, "init", "--repository-version", "2"], env=environment, check=True, capture_output=True)
    subprocess.run(
        [*words, "backup", "--force", "--tag", name, "disk.raw"],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )


PEERS = {"borg": store_with_borg, "restic": store_with_restic}


def find_peers() -> list[str]:
    return [name for name in PEERS if shutil.which(name)]


def measure_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Rival:
    """One peer with its repository, which gets a file after the other."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder, self._repository = name, folder, folder / f"{name}-repository"
        self.seconds = 0.0

    def store(self, name: str) -> None:
        began = time.perf_counter()
        PEERS[self.name](self._repository, self._folder, name)
        self.seconds = time.perf_counter() - began

    def stored(self) -> Stored:
        return Stored(measure_size(self._repository), self.seconds)

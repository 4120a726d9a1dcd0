"""A disk after a power cut: only what a process has synced is there. Content that was not synced is gone, and so is a name whose
folder was not; a file with a durable name and no durable content is empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PRELOADED = Path(__file__).with_name("synced.c")


class Disk:
    """``folder`` is what a process writes to; whatever it has synced is kept beside it."""

    def __init__(self, place: Path) -> None:
        self.folder, self._synced, self._library = place / "disk", place / "synced", place / "synced.so"
        self.folder.mkdir()
        self._synced.mkdir()
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *flags, "-o", self._library, PRELOADED, "-ldl"], check=True)

    def run(self, program: str) -> bytes:
        """What a Python ``program`` printed that works in the folder; it ends with no chance to tidy up, as when power fails."""
        environ = {**os.environ, "LD_PRELOAD": str(self._library), "SYNCED": str(self._synced)}
        words = [sys.executable, "-c", f"import os\n{program}\nos.kill(os.getpid(), 9)"]
        done = subprocess.run(words, cwd=self.folder, env=environ, capture_output=True, timeout=60)
        assert done.returncode == -9, done.stderr.decode()
        return done.stdout

    def cut(self, place: Path) -> Path:
        """The folder as it is found afterwards, in ``place``."""
        place.mkdir()
        names = self._synced / f"folder-{self.folder.stat().st_ino}"
        for line in names.read_text().splitlines() if names.exists() else ():
            inode, _, name = line.partition(" ")
            content = self._synced / f"file-{inode}"
            place.joinpath(name).write_bytes(content.read_bytes() if content.exists() else b"")
        return place

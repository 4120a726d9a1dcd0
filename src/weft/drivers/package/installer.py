"""Installs packages of weft on this machine, through a program of root that the packages bring.

The service puts the packages and ``wanted`` into its folder, ``<base>/<role>``; a unit of systemd sees that and starts
``/usr/lib/weft/<role>/install``, which checks and installs them, restarts the service, and writes ``<base>/<role>.outcome``. So the
service needs no rights, and the installation outlives its restart.

``wanted``: the attempt's key, then a line ``SHA-256  FILE`` for each package. ``outcome``: the key, then ``ok`` or what failed.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from weft.contracts.durable_file import write_durably
from weft.kinds.parts.packages import MOST_MESSAGE, InstallOutcome, Role

BASE = Path("/var/lib/weft/install")
TREES = Path("/usr/lib/weft")
SYSTEMD = Path("/run/systemd/system")
UNITS = Path("/etc/systemd/system")  # those of the administrator
_ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}


class DebianInstaller:
    """Installer of the service ``role``. ``tree``: where its package lies; ``prefix``: where this process runs from."""

    def __init__(
        self,
        role: Role,
        base: Path = BASE,
        tree: Path | None = None,
        prefix: str = sys.prefix,
        systemd: Path = SYSTEMD,
        units: Path = UNITS,
    ) -> None:
        self._role, self._base, self._prefix, self._systemd = role, base, prefix, systemd
        self._units = units
        self._tree = tree or TREES / role
        self.folder = base / role

    @property
    def architecture(self) -> str:
        machine = platform.machine()
        return _ARCHITECTURES.get(machine, machine)

    def find_obstacle(self) -> str:
        if Path(self._prefix) != self._tree:
            return f"this {self._role} doesn't run from the package weft-{self._role}: upgrade it by hand"
        if not (self._tree / "install").is_file() or not self._systemd.is_dir():
            return f"this machine's systemd doesn't start {self._tree}/install: upgrade weft-{self._role} by hand"
        if os.path.realpath(self._units / f"weft-{self._role}-install.path") == os.devnull:
            return f"weft-{self._role}-install.path is masked on this machine: upgrade weft-{self._role} by hand, or unmask it"
        if not os.access(self.folder, os.W_OK):
            return f"{self.folder} can't be written: install weft-{self._role} again"
        return ""

    def begin(self, key: str, files: Mapping[str, str]) -> None:
        lines = [key, *(f"{sha256}  {name}" for name, sha256 in files.items())]
        write_durably(self.folder / "wanted", ("\n".join(lines) + "\n").encode())

    def is_under_way(self, key: str) -> bool:
        return _read_lines(self.folder / "wanted")[0] == key

    def read_outcome(self) -> InstallOutcome | None:
        newest: tuple[float, Path] | None = None
        for path in (self._base / f"{self._role}.outcome", self.folder / "refused"):
            try:
                changed = path.stat().st_mtime
            except OSError:
                continue
            if newest is None or changed > newest[0]:
                newest = changed, path
        if newest is None:
            return None
        key, said = _read_lines(newest[1])
        return InstallOutcome(key=key[:100], problem="" if said == "ok" else said[:MOST_MESSAGE] or "it broke off")

    def refuse(self, key: str, problem: str) -> None:
        write_durably(self.folder / "refused", f"{key}\n{' '.join(problem.split())}\n".encode())

    def clear(self) -> None:
        for path in self.folder.glob("*.deb*"):
            path.unlink(missing_ok=True)


def _read_lines(path: Path) -> tuple[str, str]:
    """The first two lines of a small file; empty ones if there is none."""
    try:
        with path.open(errors="replace") as file:
            text = file.read(4096)
    except OSError:
        return "", ""
    first, _, rest = text.partition("\n")
    return first.strip(), rest.partition("\n")[0].strip()

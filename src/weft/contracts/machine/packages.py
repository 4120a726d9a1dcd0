"""The package contract: how the packages of another release of weft are installed on the machine of a service that runs on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from weft.kinds.parts.packages import InstallOutcome


class PackageInstaller(Protocol):
    """Installer of one server or agent, which its packages restart. Everything here blocks for moments only; an installation goes
    on whatever becomes of the caller."""

    @property
    def folder(self) -> Path:
        """Folder in which the packages have to be."""

    @property
    def architecture(self) -> str:
        """The machine's, as dpkg calls it."""

    def find_obstacle(self) -> str:
        """Why nothing can be installed here; "" if it can."""

    def begin(self, key: str, files: Mapping[str, str]) -> None:
        """Have packages of ``folder`` installed: their SHA-256 by file name. Raises OSError."""

    def is_under_way(self, key: str) -> bool:
        """Whether the installation with this key was begun and isn't over."""

    def read_outcome(self) -> InstallOutcome | None:
        """Outcome of the last one; None: there was none."""

    def refuse(self, key: str, problem: str) -> None:
        """Make this the outcome of an installation that can't begin. Raises OSError."""

    def clear(self) -> None:
        """Remove the packages from ``folder``. Raises OSError."""

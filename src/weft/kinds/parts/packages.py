"""Packages of a release of weft, and their installation on the machine of a server or a node."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from weft.objects.schema import field

MOST_PACKAGE_BYTES = 512 << 20
MOST_MESSAGE = 300  # characters of what an installation failed with

Role = Literal["server", "agent"]
NEEDED: dict[Role, tuple[str, ...]] = {"server": ("weft-client", "weft-server"), "agent": ("weft-client", "weft-agent")}


class PackageFile(msgspec.Struct, frozen=True, kw_only=True):
    """A Debian package of weft."""

    name: Annotated[str, field("Its name: weft-client, weft-agent or weft-server", max_length=64)]
    architecture: Annotated[str, field("As dpkg calls it: amd64, arm64", max_length=32)]
    sha256: Annotated[str, field("Its SHA-256, 64 hex digits", max_length=64)]
    size: Annotated[int, field("Bytes of the file", ge=1, le=MOST_PACKAGE_BYTES)]

    @property
    def file(self) -> str:
        """Name of its file where it is installed from."""
        return f"{self.name}_{self.architecture}.deb"


class InstallOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Outcome of the last installation on a machine."""

    key: Annotated[str, msgspec.Meta(max_length=100)]  # of the attempt
    problem: Annotated[str, msgspec.Meta(max_length=MOST_MESSAGE)] = ""  # "": the packages are installed


class UpgradeOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Install these packages, of one release, and start it."""

    attempt: str  # of an Upgrade: its uid and which one
    node_uid: str
    release: str
    packages: list[PackageFile]

    @property
    def key(self) -> str:
        return self.attempt


class UpgradeReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    attempt: str
    phase: Literal["working", "done", "failed"] = "working"
    message: str = ""

    @property
    def key(self) -> str:
        return self.attempt


def choose_packages(packages: list[PackageFile], role: Role, architecture: str) -> list[PackageFile]:
    """Those that a machine of this architecture needs for ``role``; some may be missing."""
    return [one for one in packages if one.name in NEEDED[role] and one.architecture in (architecture, "all")]


def read_release(text: str) -> tuple[int, ...]:
    """The numbers of a release, to compare; () if it can't be read. ``0.10.1`` → (0, 10, 1)"""
    found = re.match(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}", text)
    return tuple(int(number) for number in found[0].split(".")) if found is not None else ()

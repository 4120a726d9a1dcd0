"""The difference between this weft's version and a server's. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import weft

HEADER = "weft-version"  # of every answer of a server's
MOST_MINORS = 1  # difference that is tested before a release


def describe_skew(server: str, client: str = weft.__version__) -> str | None:
    """A warning about a server of version ``server``; None if both are at most a minor version apart."""
    here, there = _read(client), _read(server)
    if here is not None and there is not None and here[0] == there[0] and abs(here[1] - there[1]) <= MOST_MINORS:
        return None
    return (
        f"this weft is {client}, the server {server}: they are more than one minor version apart, which is untested; "
        "install the server's version here (weft version shows what it can do)"
    )


def is_newer(release: str, than: str) -> bool:
    """Whether ``release`` is a later major or minor version; False if one of them can't be read. Patches of one are alike."""
    here, there = _read(release), _read(than)
    return here is not None and there is not None and here > there


def find_oldest(releases: Iterable[str]) -> str:
    """The oldest one that can be read; "" if there is none."""
    return min(filter(_read, releases), key=lambda release: _read(release) or (0, 0), default="")


def _read(version: str) -> tuple[int, int] | None:
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None

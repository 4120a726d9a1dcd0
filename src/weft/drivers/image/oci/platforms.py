"""The choice of the image in an index that runs on this node. Pure, but for ``this_platform``, which asks the kernel once."""

from __future__ import annotations

import platform

import msgspec

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
_VARIANTS = {"armv7l": "v7", "armv6l": "v6"}
# Variants of an architecture that a node of it surely runs, best first; a higher one needs a CPU that may not be here.
_RUNS = {
    ("amd64", ""): ("", "v1"),
    ("arm64", ""): ("", "v8"),
    ("arm", "v7"): ("v7", "v6", "v5", ""),
    ("arm", "v6"): ("v6", "v5", ""),
}


class Platform(msgspec.Struct, frozen=True):
    """A platform, as in an image index: ``os`` and ``architecture`` in Go's words (linux, amd64), ``variant`` of the CPU."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def this_platform() -> Platform:
    machine = platform.machine()
    return Platform("linux", _ARCHITECTURES.get(machine, machine), _VARIANTS.get(machine, ""))


def choose(offered: list[Platform | None], here: Platform) -> int | None:
    """The index of the one that runs best ``here``; of two alike the first. None: none runs. What says nothing of its platform is
    taken when it is alone."""
    variants = _RUNS.get((here.architecture, here.variant), (here.variant,))
    for variant in variants:
        for position, one in enumerate(offered):
            if one is not None and (one.os, one.architecture, one.variant) == (here.os, here.architecture, variant):
                return position
    return 0 if offered == [None] else None

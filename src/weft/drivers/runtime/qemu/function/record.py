"""What is written of a template."""

from __future__ import annotations

import msgspec

from weft.drivers.runtime.qemu.function.translate import Machine


class Template(msgspec.Struct, frozen=True):
    """As template.json has it. ``key`` is of all that it depends on; ``disks`` their keys, in order, ``contents`` what they
    held then: a disk that was made again has the same files elsewhere, and the machine remembers where they were. ``node`` is
    of what the node itself has part in, which can be compared before the recipe is known."""

    key: str
    recipe: str
    machine: Machine
    kernel: str
    disks: list[str]
    contents: list[str]
    cpu: float
    node: str = ""

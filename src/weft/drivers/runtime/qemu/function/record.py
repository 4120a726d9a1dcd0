"""The record of a template."""

from __future__ import annotations

import msgspec

from weft.drivers.runtime.qemu.function.translate import TemplateMachine


class Template(msgspec.Struct, frozen=True):
    """A template as in template.json."""

    key: str  # digest of all that it depends on
    recipe: str  # the recipe's digest
    machine: TemplateMachine
    kernel: str
    disks: list[str]  # their keys, in order
    contents: list[
        str
    ]  # digests of the disks: one that was made again has the same files elsewhere, where the machine won't look
    cpu: float
    node: str = ""  # digest of the node's part in ``key``, which can be compared before the recipe is known

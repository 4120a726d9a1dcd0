"""An nft table that is changed part by part, in one transaction: what stands in the other parts is never taken away, not for a
packet. A table that is replaced whole may look empty to a packet that is just passing. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from weft.drivers.network.bridge.nftables.rules import Table

_DIGEST = "digest"  # a chain without rules, whose comment is the digest of the rest


@dataclass(frozen=True)
class RulesetPart:
    """A map, set or chain. ``head`` never changes under a name; ``lines`` are its elements or rules."""

    kind: Literal["map", "set", "chain"]
    name: str
    head: str
    lines: str = ""

    @property
    def text(self) -> str:
        return f"{self.kind} {self.name} {{\n{self.head}{self.lines}}}\n"


@dataclass(frozen=True)
class PartedTable(Table):
    """``parts``: each after those that it refers to."""

    parts: tuple[RulesetPart, ...] = ()

    @property
    def digest(self) -> str:
        return hashlib.sha256("".join(part.text for part in self.parts).encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        head = f"table {self.family} {self.name}"
        return f"{head}\ndelete {head}\n{head} {{\n{self._noted}{''.join(part.text for part in self.parts)}}}\n"

    def change_from(self, before: PartedTable) -> str:
        """The commands that make this table from ``before``, which exists."""
        of = f"{self.family} {self.name}"
        was, now = {part.name: part for part in before.parts}, {part.name: part for part in self.parts}
        gone = [part for part in reversed(before.parts) if part.name not in now]
        changed = [part for part in self.parts if was.get(part.name) != part]
        flushed = [part for part in (*reversed(changed), *gone) if part.name in was and was[part.name].lines]
        lines = [f"delete chain {of} {_DIGEST}"]
        lines += [f"flush {part.kind} {of} {part.name}" for part in flushed]
        lines += [f"delete {part.kind} {of} {part.name}" for part in gone]
        body = "".join(part.text for part in changed)
        return "\n".join([*lines, f"table {of} {{\n{self._noted}{body}}}\n"])

    @property
    def _noted(self) -> str:
        return f'chain {_DIGEST} {{\n  comment "{self.digest}"\n}}\n'


def make_parts(family: str, name: str, parts: Iterable[RulesetPart]) -> PartedTable:
    return PartedTable(family, name, "", tuple(parts))

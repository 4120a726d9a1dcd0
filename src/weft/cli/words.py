"""How objects are named on the command line: NAME after a noun, KIND NAME… or KIND/NAME without one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import click

from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, find_kind, is_workload
from weft.objects.errors import NotFound


class Target(NamedTuple):
    kind: Kind
    name: str

    @property
    def what(self) -> str:
        return f"{self.kind.name}/{self.name}"


def read_targets(kind: Kind | None, words: Sequence[str], able: Sequence[str] = ()) -> list[Target]:
    """The objects that ``words`` name, with ``kind`` already known from a noun, or not.

    ``able`` are the kinds the verb is for: where that is only one, or all are workloads, a bare NAME is enough, and is of the
    first. Raises UsageError, NotFound for an unknown kind."""
    words = list(words)
    if not words:
        raise click.UsageError("the name is missing: give NAME" if kind else "give KIND NAME or KIND/NAME")
    if kind is None and "/" not in words[0]:
        kind, words = _read_kind(words, able)
        if not words:
            raise click.UsageError(f"the name is missing: {kind.name} NAME or {kind.name}/NAME")
    targets = [_read_target(kind, word) for word in words]
    for target in targets:
        if able and target.kind.name not in able:
            raise click.UsageError(f"that is for {' and '.join(able)}, not for {target.what}")
    return list({target.what: target for target in targets}.values())


def _read_kind(words: list[str], able: Sequence[str]) -> tuple[Kind, list[str]]:
    try:
        named = find_kind(words[0])
    except NotFound:
        if not _is_bare(able):
            raise
        return BY_NAME[able[0]], words
    if len(words) == 1 and _is_bare(able) and named.name != able[0]:
        return BY_NAME[able[0]], words  # a VM may be called "node"
    return named, words[1:]


def _is_bare(able: Sequence[str]) -> bool:
    """Whether a NAME alone is enough: it is of the first kind then."""
    return len(able) == 1 or (bool(able) and all(is_workload(name) for name in able))


def _read_target(kind: Kind | None, word: str) -> Target:
    before, slash, name = word.partition("/")
    if not slash:
        before, name = "", word
    named = find_kind(before) if before else kind
    if named is None:
        raise click.UsageError(f"{word!r}: give KIND/NAME, like vm/{word}")
    if kind is not None and named.name != kind.name:
        raise click.UsageError(f"{word} is no {kind.title}")
    if not name or "/" in name:
        raise click.UsageError(f"{word!r} names no object: give KIND/NAME")
    return Target(named, name)

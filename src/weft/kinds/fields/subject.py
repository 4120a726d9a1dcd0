"""Subject of a snapshot or a backup: KIND/NAME, in the same project."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from weft.objects.errors import InvalidInput


def split_subject(of: str) -> tuple[str, str]:
    """Its kind and its name."""
    kind, _, name = of.partition("/")
    return kind, name


def list_named(kind: str, subjects: Iterable[str]) -> list[str]:
    """The names of those that are of this kind."""
    return [name for of in subjects for found, name in [split_subject(of)] if found == kind]


def check_subject(of: str, at: str, kinds: Collection[str], what: str) -> None:
    """Raises InvalidInput unless ``of``, in the field ``at``, may have ``what``: "snapshots are taken of"."""
    kind, name = split_subject(of)
    if kind not in kinds or not name or "/" in name:
        examples = {"vm": "vm/web", "volume": "volume/data", "container": "container/db", "project": "project/shop"}
        hint = " or ".join(examples[one] for one in kinds)
        raise InvalidInput(f"{at}: {of[:60]!r} is nothing that {what}", field=at, hint=f"write {hint}")

"""Choice of backups by a point in time: of each thing the newest good one then or before, and how far that is off. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from weft.cli.output.local_time import render_time
from weft.cli.snapshot.description import name_snapshot
from weft.kinds.backup import SET
from weft.kinds.fields.backup_verification import DAMAGED, FAILED
from weft.kinds.fields.cells import dig
from weft.objects.errors import AlreadyExists, NotFound
from weft.objects.identity import cut_name
from weft.objects.quantity import format_duration

Object = Mapping[str, Any]


class Choice(msgspec.Struct, frozen=True):
    """The source from which one thing is restored."""

    of: str
    backup: Object
    following: Object | None  # the next good one, later than asked


class Chosen(msgspec.Struct, frozen=True):
    choices: list[Choice]
    left_out: list[str]  # what can't be restored, each as a sentence


def choose(backups: Iterable[Object], name: str, policies: Collection[str], at: float | None) -> Chosen:
    """Choose what to restore ``name`` from: a thing as KIND/NAME, or all that one of the ``policies`` or a backup of a project has
    made, or a thing by its name alone. ``at`` None: the newest. Raises NotFound if there is nothing for any of it."""
    of: dict[str, list[Object]] = {}
    for backup in _find(list(backups), name, policies):
        of.setdefault(str(dig(backup, "spec.of")), []).append(backup)
    if not of:
        raise NotFound(f"there are no backups of {name}", hint="weft backup list")
    choices, left_out = list[Choice](), list[str]()
    for subject, own in of.items():
        good = sorted((one for one in own if _is_good(one)), key=_taken)
        before = [one for one in good if at is None or _taken(one) <= at]
        if before:
            choices.append(Choice(subject, before[-1], good[len(before)] if len(good) > len(before) else None))
        elif good and at is not None:
            asked, first = (render_time(moment, seconds=True) for moment in (at, _taken(good[0])))
            left_out.append(f"{subject} has no backup at or before {asked}: its first is of {first}")
        else:
            left_out.append(f"{subject} has no backup that is Ready, undamaged, and not known to fail to boot")
    if not choices:
        raise NotFound("; ".join(left_out), hint="weft backup list")
    return Chosen(choices, left_out)


def _find(backups: Sequence[Object], name: str, policies: Collection[str]) -> list[Object]:
    there = [one for one in backups if not one.get("deleting_since")]
    if "/" in name:
        return [one for one in there if dig(one, "spec.of") == name]
    made = [one for one in there if dig(one, "marks.policy") in policies or (one.get("labels") or {}).get(SET) == name]
    return made or [one for one in there if str(dig(one, "spec.of")).partition("/")[2] == name]


def describe_grain(choice: Choice, at: float | None) -> str:
    """``2024-12-09 15:29:58 CET, 2 s before; the next backup is of 2024-12-09 16:29:58 CET``."""
    taken = _taken(choice.backup)
    said = render_time(taken, seconds=True)
    if at is not None:
        said += f", {_describe_span(at - taken)} before" if at - taken >= 0.5 else ", as asked"
    if choice.following is not None:
        return f"{said}; the next backup is of {render_time(_taken(choice.following), seconds=True)}"
    return f"{said}; there is no later backup" if at is not None else said


def name_restored(choice: Choice, given: str, existing: Collection[str], *, is_alone: bool) -> str:
    """The name of what is created: as ``given``, with the old name behind it if others are created, too; else the old name, with
    the backup's time if something ``existing`` has that, as KIND/NAME."""
    name = choice.of.partition("/")[2]
    if given:
        return given if is_alone else cut_name(f"{given}-{name}")
    return name if choice.of not in existing else name_snapshot(name, _taken(choice.backup))


def name_all(choices: Sequence[Choice], given: str, existing: Collection[str]) -> dict[str, str]:
    """The names of all that is created, by what it was. Raises AlreadyExists, before anything is."""
    names = {one.of: name_restored(one, given, existing, is_alone=len(choices) == 1) for one in choices}
    for of, name in names.items():
        what = f"{of.partition('/')[0]}/{name}"
        if what in existing:
            raise AlreadyExists(
                f"{what} exists already, so nothing was restored", field="new_name", hint="give another --new-name"
            )
    return names


def _is_good(backup: Object) -> bool:
    return bool(dig(backup, "status.phase") == "Ready" and dig(backup, "status.state") not in (DAMAGED, FAILED))


def _taken(backup: Object) -> float:
    return float(dig(backup, "status.taken_at") or 0.0)


def _describe_span(seconds: float) -> str:
    return f"{round(seconds)} s" if seconds < 60 else format_duration(round(seconds))

"""Ctrl-C while a project is restored: what is there by then, how to take it back, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from weft.cli.session import Session, in_project_of
from weft.cli.wait.watch import Wait, describe_wait
from weft.kinds.registry import BY_NAME, WORKLOADS
from weft.objects.errors import NotFound, WeftError

_KEEP = "--keep-existing"
_USERS = (*WORKLOADS, "job", "function")  # deleted first: they use the others
_PROJECT = "project"


class Made:
    """The objects that a restore has created so far in ``project``, in order, each as KIND/NAME. ``before``: what was there
    already."""

    def __init__(self, project: str, before: Iterable[str] = ()) -> None:
        self.project = project
        self._before = frozenset(before)
        self.whats: list[str] = []
        self.asked: list[
            str
        ] = []  # what the server was asked for last: an interrupted request may have been carried out

    def ask(self, *whats: str) -> None:
        self.asked = self._leave_out_known(whats)

    def add(self, *whats: str) -> None:
        self.whats += self._leave_out_known(whats)
        self.asked = []

    def _leave_out_known(self, whats: Iterable[str]) -> list[str]:
        return [one for one in dict.fromkeys(whats) if one not in self.whats and one not in self._before]

    def inspect(self, session: Session) -> list[str]:
        """Find out what of ``asked`` was created; of what is returned that isn't known."""
        unknown, found = list[str](), list[str]()
        for what in self.asked:
            kind, _, name = what.partition("/")
            project = self.project if BY_NAME[kind].scope == "project" else None
            try:
                session.client.get(kind, name, project=project)
                found.append(what)
            except NotFound:
                continue
            except WeftError:
                unknown.append(what)
        self.add(*found)
        return unknown


def describe_stop(made: Made, unknown: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Describe the interruption for who causes it before all is created. ``typed``: the command line after ``weft``. Pure."""
    if not made.whats and not unknown:
        return ["interrupted: nothing was created"]
    lines = [
        f"interrupted: nothing more is created; created so far, and it stays: {', '.join(made.whats) or 'nothing'}"
    ]
    if unknown:
        lines.append(f"no server says whether these were created, too: {', '.join(unknown)}")
    words = typed if _KEEP in typed else [*typed, _KEEP]
    return [*lines, f"go on: weft {shlex.join(words)}", *_describe_undo(made)]


def describe_end(session: Session, made: Made, waits: Sequence[Wait]) -> list[str]:
    """Describe the end for who interrupts the wait after the last step."""
    watch = f"{describe_wait(*waits)}{in_project_of(session, made.project)}"
    return [f"interrupted: nothing is left to create, and the work goes on; watch: {watch}", *_describe_undo(made)]


def _describe_undo(made: Made) -> list[str]:
    """The commands, the last created first; each is carried out when the one before is over, as objects in use can't be deleted."""
    last_first = made.whats[::-1]
    users = [one for one in last_first if _kind_of(one) in _USERS]
    projects = [one for one in last_first if _kind_of(one) == _PROJECT]
    rest = [one for one in last_first if one not in users and one not in projects]
    where = f" -p {made.project}"
    commands = [f"weft delete {names}{where}" for names in map(_join, (users, rest)) if names]
    commands += [f"weft delete {_join(projects)}"] if projects else []
    return [f"undo: {' && '.join(commands)}"] if commands else []


def _kind_of(what: str) -> str:
    return what.partition("/")[0]


def _join(whats: Iterable[str]) -> str:
    return " ".join(whats)

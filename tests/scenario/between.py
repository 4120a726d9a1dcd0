"""Somebody writes in between: each commit of controllers (``Between``) and of all others (``MeddlingStore``) is met by a write
to the very key that one of its preconditions is about, after it was planned and before the store has it. The store must refuse it,
and who planned it plan anew.

A commit is known by its site: the file and function in whose source it is made. ``sites`` lists all of them.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

import weft
from weft.contracts.store import (
    Absent,
    AtRevision,
    Delete,
    LeaseHeld,
    Precondition,
    PreconditionFailed,
    Present,
    Put,
    Store,
    Write,
)
from weft.informer.commit import Commit, Draft
from weft.informer.leader_lease import LeaderLease
from weft.kinds.container import ContainerSpec
from weft.kinds.quota import QuotaSpec
from weft.kinds.registry import WORKLOADS
from weft.kinds.server import ServerSpec
from weft.kinds.service import ServiceSpec
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.identity import new_uid

SOURCE = Path(weft.__file__).parent
ROOMS = ("controllers", "scheduler")


def find_calls(rooms: Sequence[str], is_site: Any) -> dict[tuple[str, int], str]:
    """(file, line) of each call that ``is_site`` takes for one → its name: ``room/file.py function``, with a number if
    there are several in the function."""
    return {
        (path, line): name
        for path, name, call in _name_calls(rooms, is_site)
        for line in range(call.lineno, (call.end_lineno or 0) + 1)
    }


@functools.cache
def _parse(path: Path, words: tuple[str, ...]) -> ast.AST:
    """Without any of ``words`` in it there is no site in a file, and to parse all takes long."""
    text = path.read_text()
    return ast.parse(text if any(word in text for word in words) else "")


def _name_calls(rooms: Sequence[str], is_site: Any) -> Iterator[tuple[str, str, ast.Call]]:
    for path in sorted(path for room in rooms for path in (SOURCE / room).rglob("*.py")):
        for function, calls in _calls_by_function(_parse(path, WORDS[is_site]), is_site).items():
            for number, call in enumerate(calls, 1):
                yield (
                    str(path),
                    f"{path.relative_to(SOURCE)} {function}" + (f" {number}" if len(calls) > 1 else ""),
                    call,
                )


def _calls_by_function(tree: ast.AST, is_site: Any) -> dict[str, list[ast.Call]]:
    found: dict[str, list[ast.Call]] = defaultdict(list)

    def walk(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(child, ast.Call) and is_site(child.func):
                found[inner].append(child)
            walk(child, inner)

    walk(tree, "")
    return found


def is_commit(called: ast.expr) -> bool:
    return ast.unparse(called) in ("Commit", "draft.commit")


def is_store_commit(called: ast.expr) -> bool:
    """Whether it is a commit that goes to the store by itself, not through a ``LeaderLease``."""
    return isinstance(called, ast.Attribute) and called.attr == "commit" and ast.unparse(called.value).endswith("store")


def is_precondition(called: ast.expr) -> bool:
    return isinstance(called, ast.Name) and called.id in ("AtRevision", "Absent", "Present", "unchanged")


WORDS = {
    is_commit: ("Commit", "commit"),
    is_store_commit: ("commit",),
    is_precondition: ("AtRevision", "Absent", "Present", "unchanged"),
}


def kind_of(key: str) -> str:
    kind = key[1:].partition("/")[0]
    return "workload" if kind in WORKLOADS else kind


def name_precondition(precondition: Precondition, writes: Sequence[Write]) -> str:
    """``node at``, ``allocation absent``: the kind of what it is about, and what must be so; and whether it goes."""
    how = {AtRevision: "at", Absent: "absent"}.get(type(precondition), "present")
    key = getattr(precondition, "key", "/lease")
    goes = any(isinstance(write, Delete) and write.key == key for write in writes)
    return f"{kind_of(key)} {how}{' and goes' * goes}"


class Between:
    """``refused``: by site, the preconditions in whose way a write was put and that the store then found wrong;
    ``loose``: by site, the kinds of what is written with nothing said of its own key; ``wrong``: what was written all the
    same."""

    def __init__(self) -> None:
        self.sites = find_calls(ROOMS, is_commit)
        self.refused: dict[str, set[str]] = defaultdict(set)
        self.loose: dict[str, set[str]] = defaultdict(set)
        self.wrong: list[str] = []
        self._made: dict[int, tuple[Commit, str]] = {}
        self._planned: dict[Precondition, str] = {}

    @contextlib.contextmanager
    def step_in(self) -> Iterator[None]:
        """Do so to all controllers that run meanwhile."""
        perform, write = LeaderLease.perform, LeaderLease._write
        between = self

        async def performed(term: LeaderLease, commits: Sequence[Commit], refused: Any = None) -> list[Commit]:
            planned = [one for commit in commits for one in between._look_at(commit)]
            try:
                return await perform(term, commits, refused)
            finally:
                for one in planned:
                    between._planned.pop(one, None)

        async def written(term: LeaderLease, writes: Sequence[Write], preconditions: Sequence[Precondition]) -> int:
            for precondition in preconditions:
                site = between._planned.pop(precondition, None)
                if site is not None and (undo := await _put_in_the_way(term.store, precondition, writes)) is not None:
                    try:
                        revision = await write(term, writes, preconditions)
                    except PreconditionFailed as problem:
                        if problem.failed == precondition:
                            between.refused[site].add(name_precondition(precondition, writes))
                        raise
                    finally:
                        await term.store.commit(undo)
                    between.wrong.append(f"{site}: {name_precondition(precondition, writes)}: {precondition}")
                    return revision
            return await write(term, writes, preconditions)

        with contextlib.ExitStack() as patches:
            for module in {name.partition(" ")[0] for name in self.sites.values()}:
                place = importlib.import_module(f"weft.{module.removesuffix('.py').replace('/', '.')}")
                if "Commit" in vars(place):
                    patches.enter_context(mock.patch.object(place, "Commit", self._note))
            patches.enter_context(mock.patch.object(Draft, "commit", self._note_draft))
            patches.enter_context(mock.patch.object(LeaderLease, "perform", performed))
            patches.enter_context(mock.patch.object(LeaderLease, "_write", written))
            yield

    def _note(self, *given: Any, **more: Any) -> Commit:
        """Make a commit, and remember where that was."""
        commit, frame = Commit(*given, **more), sys._getframe(1)
        self._made[id(commit)] = commit, self.sites[frame.f_code.co_filename, frame.f_lineno]
        return commit

    @property
    def _note_draft(self) -> Any:
        make = Draft.commit

        def made(draft: Draft, *given: Any) -> Commit | None:
            commit, frame = make(draft, *given), sys._getframe(1)
            if commit is not None:
                self._made[id(commit)] = commit, self.sites[frame.f_code.co_filename, frame.f_lineno]
            return commit

        return made

    def _look_at(self, commit: Commit) -> list[Precondition]:
        """Plan what is to come in between it and the store."""
        if id(commit) not in self._made:
            return []  # a test's own
        site = self._made.pop(id(commit))[1]
        about = {getattr(precondition, "key", "") for precondition in commit.preconditions}
        self.loose[site] |= {kind_of(write.key) for write in commit.writes if write.key not in about}
        planned = [
            one for one in commit.preconditions if name_precondition(one, commit.writes) not in self.refused[site]
        ]
        self._planned |= dict.fromkeys(planned, site)
        return planned


class MeddlingStore:
    """``inner`` as a store, in which somebody writes in between. ``refused`` and ``loose`` are those of ``Between``, by what is
    asked for (``asked``) and by site; ``made_at`` are the sites of the preconditions that were refused."""

    def __init__(self, inner: Store, rooms: Sequence[str]) -> None:
        self.inner = inner
        self.asked = ""
        self.refused: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.loose: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.wrong: list[str] = []
        self.made_at: set[str] = set()
        self.meddled = False
        self.sites = find_calls(rooms, is_store_commit)
        self.places = {  # by their very position: two may stand in one line
            (path, call.lineno, call.col_offset): name for path, name, call in _name_calls(rooms, is_precondition)
        }
        self._made: dict[int, tuple[Precondition, str]] = {}
        self._tried: set[tuple[tuple[str, str], str, str]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @contextlib.contextmanager
    def watch_makers(self) -> Iterator[None]:
        """See where in the source preconditions are made meanwhile."""
        with contextlib.ExitStack() as patches:
            for module in {name.partition(" ")[0] for name in self.places.values()}:
                place = importlib.import_module(f"weft.{module.removesuffix('.py').replace('/', '.')}")
                for maker in {"AtRevision", "Absent", "Present", "unchanged"} & vars(place).keys():
                    patches.enter_context(mock.patch.object(place, maker, self._note(getattr(place, maker))))
            yield

    def _note(self, make: Any) -> Any:
        def made(*given: Any) -> Precondition:
            precondition, frame = make(*given), sys._getframe(1)
            line, _, column, _ = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
            self._made[id(precondition)] = precondition, self.places[frame.f_code.co_filename, line or 0, column or 0]
            return precondition  # type: ignore[no-any-return]

        return made

    async def commit(self, writes: Sequence[Write], preconditions: Sequence[Precondition] = (), **more: Any) -> int:
        frame = sys._getframe(1)
        site = self.sites.get((frame.f_code.co_filename, frame.f_lineno))
        if site is None or not self.asked:
            return await self.inner.commit(writes, preconditions, **more)
        at = self.asked, site
        about = {getattr(precondition, "key", "") for precondition in preconditions}
        self.loose[at] |= {kind_of(write.key) for write in writes if write.key not in about}
        once = self.meddled or not writes  # what writes nothing can't write what is wrong
        for precondition in () if once else preconditions:
            made_at = self._made[id(precondition)][1] if id(precondition) in self._made else ""
            if (at, name_precondition(precondition, writes), made_at) in self._tried:
                continue
            undo = await _put_in_the_way(self.inner, precondition, writes)
            if undo is None:
                continue
            self.meddled = True
            self._tried.add((at, name_precondition(precondition, writes), made_at))
            try:
                revision = await self.inner.commit(writes, preconditions, **more)
            except PreconditionFailed as problem:
                if problem.failed == precondition:
                    self.refused[at].add(name_precondition(precondition, writes))
                    self.made_at.add(made_at)
                raise
            finally:
                await self.inner.commit(undo)
            self.wrong.append(f"{self.asked}: {site}: {name_precondition(precondition, writes)}")
            return revision
        return await self.inner.commit(writes, preconditions, **more)


async def _put_in_the_way(store: Store, precondition: Precondition, writes: Sequence[Write]) -> list[Write] | None:
    """Make ``precondition`` wrong by a write that changes nothing of what is meant; what takes that away again. None where it
    is wrong already."""
    if isinstance(precondition, LeaseHeld):
        return None
    key, entry = precondition.key, await store.get(precondition.key)
    match precondition:
        case AtRevision(revision=revision) if entry is not None and entry.revision == revision:
            await store.commit([Put(key, entry.value)])
            return []
        case Present() if entry is not None:
            await store.commit([Delete(key)])
            return [Put(key, entry.value)]
        case Absent() if entry is None:
            mine = [write.value for write in writes if isinstance(write, Put) and write.key == key]
            await store.commit([Put(key, mine[0] if mine else _make_object(key))])
            return [Delete(key)]
    return None


def _make_object(key: str) -> bytes:
    """One under a name that a commit relies on to be nobody's."""
    _, kind, project, name = key.split("/")
    specs: dict[str, msgspec.Struct] = {"vm": VmSpec(image="tiny"), "container": ContainerSpec(image="tiny")}
    spec = {
        **specs,
        "server": ServerSpec(),
        "service": ServiceSpec(selector={"app": "web"}, ports=["80"]),
        "quota": QuotaSpec(instances=1000),
    }[kind]
    made = Envelope(kind=kind, name=name, uid=new_uid(), project=project, spec=msgspec.Raw(msgspec.json.encode(spec)))
    return encode_envelope(made)

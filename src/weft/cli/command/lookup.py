"""Finds objects by less than KIND/NAME: the kind of a bare name, and for verbs that only read, a name by its beginning. Verbs
that change something take exact names only: tomorrow, another object may have the same beginning."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from weft.cli.command.target import (
    Target,
    find_noun,
    is_guess,
    join_words,
    one_target,
    read_targets,
    refuse_project,
    usage,
)
from weft.cli.session import Session
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS, WORKLOADS
from weft.objects.errors import Forbidden, NotFound, Unavailable, WeftError
from weft.objects.image.reference import held_name
from weft.objects.quantity import format_bytes, format_cpu
from weft.objects.schema import suggest

Object = dict[str, Any]
_RUNNING = (*WORKLOADS, "function", "job")  # a bare name is one of these before it is a network or a secret
_REST = tuple(
    kind.name
    for kind in KINDS
    if kind.access.writer == "people" and not kind.lifetime.ephemeral and kind.name not in _RUNNING
)
_MOST_SHOWN = 4
COURTESY_SECONDS = 2.0  # for a hint beside an error


def find_targets(session: Session, kind: Kind | None, words: Sequence[str], able: Sequence[str] = ()) -> list[Target]:
    """The objects that ``words`` name exactly, with the kinds of bare names. Raises as ``read_targets``, and UsageError for a
    name that several objects have."""
    found = read_targets(kind, words, able, lambda name, kinds: _find(session, name, kinds))
    refuse_project(session, [target.kind for target in found])
    return found


def find_sure_targets(session: Session, kind: Kind | None, words: Sequence[str]) -> list[Target]:
    """The objects that ``words`` name exactly, for what can't be undone. A bare name may be a workload's; for any other kind the
    error says what to write."""

    def find(name: str, kinds: Sequence[str]) -> Target | None:
        found = _find(session, name, kinds)
        if found is not None and found.kind.name not in WORKLOADS:
            raise usage(f"{name!r} needs its kind", f"write {found.what}")
        return found

    return read_targets(kind, words, (), find)


def resolve(session: Session, kind: Kind | None, words: Sequence[str], able: Sequence[str] = ()) -> list[Target]:
    """Find targets like ``find_targets``, for verbs that only read: the beginning of a name or uid is enough if only one object has
    it."""
    found = {
        target.what: target
        for target in read_targets(kind, words, able, lambda *asked: _find(session, *asked, begun=True))
    }
    refuse_project(session, [target.kind for target in found.values()])
    exact = [target if _exists(session, target) else _complete(session, target) for target in found.values()]
    return list({target.what: target for target in exact}.values())


def find_one(
    session: Session, kind: Kind | None, words: Sequence[str], able: Sequence[str], alone: str, hint: str = ""
) -> Target:
    """Find the target like ``find_targets``, for a verb that takes one. Raises UsageError with ``alone`` and ``hint`` where there
    are more."""
    return one_target(find_targets(session, kind, words, able), alone, hint)


def resolve_one(session: Session, kind: Kind | None, words: Sequence[str], able: Sequence[str], alone: str) -> Target:
    """Find the target like ``resolve``, for a verb that takes one."""
    return one_target(resolve(session, kind, words, able), alone)


def refuse_unlinked(session: Session, name: str, field: str) -> None:
    """Raise NotFound, of ``field``, if no cluster ``name`` is linked. Where nobody answers it may be."""
    try:
        session.client.get("cluster", name)
    except NotFound as missing:
        raise NotFound(
            f'no cluster "{name}" is linked',
            field=field,
            hint="weft cluster list shows those that are",
            details=missing.details,
        ) from None
    except WeftError:
        return


def is_image(session: Session, word: str) -> bool:
    """Whether ``word`` names an image: one in a registry, by its form, or one that weft holds. False if the server doesn't
    answer."""
    if "/" in word or not held_name(word):
        return not word.startswith(("/", "."))
    try:
        session.make_client(timeout_seconds=COURTESY_SECONDS).get("image", word)
    except WeftError:
        return False
    return True


_QUERY = "query parameter "


def clarify(session: Session, problem: WeftError) -> WeftError:
    """``problem`` in the words of the command line: with flags instead of fields, and with a hint from the server: for a name that
    doesn't exist a similar one, for a size that no guest can have the sizes of the nodes. Without an answer there is no hint."""
    if problem.field:  # who typed a flag knows of no query
        problem.message = (
            problem.message.removeprefix(_QUERY) if f"{_QUERY}{problem.field}:" in problem.message else problem.message
        )
    if session.command is not None and problem.field:
        importlib.import_module("weft.cli.command.flag_names").name_flags(session.command, problem)
    try:
        if problem.token == NotFound.reason and problem.details.get("kind") in BY_NAME:
            kind, name = BY_NAME[problem.details["kind"]], str(problem.details.get("name"))
            client = session.make_client(timeout_seconds=COURTESY_SECONDS)
            known = [item["name"] for item in client.list(kind.name, project=problem.details.get("project")).items]
            if meant := _suggest(name, known):
                problem.hint = f"did you mean {kind.name}/{meant}?   {problem.hint or ''}".rstrip()
        if "most" in problem.details:
            _add_node_sizes(session, problem)
    except WeftError:
        return problem
    return problem


def _add_node_sizes(session: Session, problem: WeftError) -> None:
    resource = (problem.field or "").rpartition(".")[2]
    if resource not in ("cpu", "memory"):
        return
    nodes = session.make_client(timeout_seconds=COURTESY_SECONDS).list("node").items
    sizes = sorted(((dig(node, f"report.{resource}", 0), node["name"]) for node in nodes), reverse=True)
    show = format_bytes if resource == "memory" else format_cpu
    had = ", ".join(f"{name} {show(size)}" for size, name in sizes[:_MOST_SHOWN])
    if had:
        more = f" and {len(sizes) - _MOST_SHOWN} more" if len(sizes) > _MOST_SHOWN else ""
        problem.hint = f"{problem.hint or ''}; the nodes have {had}{more}".lstrip("; ")


def _suggest(name: str, known: Sequence[str]) -> str | None:
    return suggest(name, list(known)) or next((one for one in known if name and one.startswith(name)), None)


def _find(session: Session, name: str, kinds: Sequence[str], *, begun: bool = False) -> Target | None:
    """The object of that name, with ``begun`` also one whose name or uid begins so. None for a word that is rather a misspelt
    kind; the caller reports it."""
    try:
        found = _find_called(session, name, kinds)
        if found is None and begun:
            among = [BY_NAME[kind] for kind in kinds or _RUNNING]
            ones = [Target(kind, item["name"]) for kind in among for item in _begun(_list(session, kind), name)]
            found = _choose(session, name, ones)
        if found is None and not _is_like_a_noun(name):
            raise _nothing(session, name, kinds)
    except Unavailable:  # nobody can say whether it is there
        raise
    except WeftError:
        if _is_like_a_noun(name):
            return None
        raise
    return found


def _find_called(session: Session, name: str, kinds: Sequence[str]) -> Target | None:
    for group in [kinds] if kinds else [_RUNNING, _REST]:
        found = [target for kind in group if _exists(session, target := Target(BY_NAME[kind], name))]
        if len(found) > 1:
            raise usage(f"{name!r} could be {' or '.join(target.what for target in found)}", "write KIND/NAME")
        if found:
            return found[0]
    return None


def _nothing(session: Session, name: str, kinds: Sequence[str]) -> NotFound:
    among = [BY_NAME[kind] for kind in kinds or _RUNNING]
    known = {item["name"]: kind for kind in among for item in _list(session, kind)}
    meant = _suggest(name, list(known))
    hint = f"did you mean {known[meant].name}/{meant}?" if meant else "write KIND/NAME; weft --help lists the kinds"
    what = join_words([BY_NAME[kind].title for kind in kinds], "or") or "object"
    return NotFound(f'no {what} named "{name[:80]}" in project {session.client.project}', hint=hint)


def _is_like_a_noun(word: str) -> bool:
    """Whether ``word`` is rather a misspelt kind, or another tool's word for one."""
    try:
        find_noun(word)
    except NotFound as unknown:
        return is_guess(unknown)
    return True


def _complete(session: Session, target: Target) -> Target:
    """The object whose name or uid begins so; ``target`` itself if there is none, or the server doesn't answer."""
    found = [Target(target.kind, item["name"]) for item in _begun(_list(session, target.kind), target.name)]
    return _choose(session, target.name, found) or target


def _choose(session: Session, start: str, found: Sequence[Target]) -> Target | None:
    if len(found) > 1:
        names = ", ".join(target.what for target in found[:_MOST_SHOWN]) + (", …" if len(found) > _MOST_SHOWN else "")
        raise NotFound(f"several objects begin with {start!r}: {names}", hint="write more of the name")
    if found:
        session.notify(f"{start!r} means {found[0].what}")
    return found[0] if found else None


def _begun(items: Sequence[Object], start: str) -> list[Object]:
    return [item for item in items if start and (item["name"].startswith(start) or item["uid"].startswith(start))]


def _exists(session: Session, target: Target) -> bool:
    try:
        session.client.get(target.kind.name, target.name)
    except NotFound as missing:
        if missing.token == NotFound.reason and missing.details.get("kind") in (target.kind.name, None):
            return False
        raise  # no context, no project
    except Forbidden:
        return False
    return True


def _list(session: Session, kind: Kind) -> list[Object]:
    try:
        return session.client.list(kind.name).items
    except Forbidden:
        return []

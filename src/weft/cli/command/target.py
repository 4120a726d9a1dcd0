"""How objects are named on the command line: NAME after a noun, KIND NAME… or KIND/NAME without one; without a kind ``find``
finds the object of that name. Pure but for that."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import click

from weft.cli.command.synonyms import find_command_meant, find_kind_meant
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, find_kind, is_workload
from weft.objects.errors import NotFound


class Target(NamedTuple):
    kind: Kind
    name: str

    @property
    def what(self) -> str:
        return f"{self.kind.name}/{self.name}"


# Finds the object of one of these kinds (none: of any) by its name; None if the server doesn't answer.
Find = Callable[[str, Sequence[str]], Target | None]


def find_noun(word: str) -> Kind:
    """The kind that ``word`` names. Raises NotFound with a suggestion, also for other tools' words."""
    try:
        return find_kind(word)
    except NotFound as unknown:
        if meant := find_kind_meant(word):
            unknown.hint = f"did you mean {BY_NAME[meant].plural}?"
        elif command := find_command_meant(word, None, ()):
            unknown.hint = f"did you mean {command}?"
        elif not is_guess(unknown):
            unknown.hint = "weft --help lists the kinds"  # the API's hint has them all
        raise


def is_guess(unknown: NotFound) -> bool:
    """Whether the error for a word that names no kind has one that is meant."""
    return (unknown.hint or "").startswith("did you mean")


def is_noun(word: str) -> bool:
    """Whether ``word`` names a kind."""
    try:
        find_kind(word)
    except NotFound:
        return False
    return True


def usage(message: str, hint: str = "") -> click.UsageError:
    """A complaint about the command line, with what to type in its place."""
    error = click.UsageError(message, click.get_current_context(silent=True))
    if hint:
        error.hint = hint  # type: ignore[attr-defined]
    return error


def refuse_project(session: Session, kinds: Collection[Kind]) -> None:
    """Raise UsageError if -p was given and all of ``kinds`` belong to no project: it would do nothing."""
    wide = {kind.plural for kind in kinds if kind.scope == "fabric"}
    if session.given_project and wide and not any(kind.scope == "project" for kind in kinds):
        raise usage(
            f"-p {session.given_project}: {join_words(sorted(wide), 'and')} belong to no project", "leave -p out"
        )


def read_targets(
    kind: Kind | None, words: Sequence[str], able: Sequence[str] = (), find: Find | None = None
) -> list[Target]:
    """The objects that ``words`` name, with ``kind`` already known from a noun, or not.

    ``able`` are the verb's kinds: if there is only one, a bare NAME is of that kind; else ``find`` decides, and if it can't and
    all are workloads, the first kind is taken. Raises UsageError, NotFound for an unknown kind."""
    words = list(words)
    if not words:
        raise usage("the name is missing: give NAME" if kind else "give KIND NAME or KIND/NAME")
    refuse_assignments(words)
    if kind is None and "," in words[0] and all(map(is_noun, words[0].split(","))):
        raise usage(f"{words[0]}: name one kind", "weft get vms lists one; weft ps lists VMs, containers and jobs")
    if kind is None and "/" not in words[0]:
        if not _names_kind(words, able):
            return _unique([_find_bare(word, able, find, alone=len(words) == 1) for word in words])
        kind, words = find_kind(words[0]), words[1:]
        if not words:
            raise usage(f"the name is missing: {kind.name} NAME or {kind.name}/NAME")
    targets = [_read_target(kind, word) for word in words]
    for target in targets:
        if able and target.kind.name not in able:
            raise usage(f"the command takes {join_words(able, 'and')} objects, not {target.what}")
    return _unique(targets)


def one_target(targets: Sequence[Target], message: str, hint: str = "") -> Target:
    """The only one of ``targets``. Raises UsageError with ``message`` and ``hint`` if there are more."""
    if len(targets) != 1:
        raise usage(message, hint)
    return targets[0]


def refuse_assignments(words: Sequence[str]) -> None:
    """Raises UsageError for a field's value among names."""
    for word in words:
        field, sign, value = word.partition("=")
        if sign and field.replace("_", "").replace("-", "").isalnum():
            raise usage(f"{word!r} is not a name", f"write --{field.replace('_', '-')} {value or 'VALUE'}")


def _unique(targets: Sequence[Target]) -> list[Target]:
    return list({target.what: target for target in targets}.values())


def _names_kind(words: Sequence[str], able: Sequence[str]) -> bool:
    """Whether the first word is a kind, and not an object's name: a VM may be called "node"."""
    if not is_noun(words[0]):
        return False
    return not (len(words) == 1 and _is_bare(able) and find_kind(words[0]).name != able[0])


def _find_bare(word: str, able: Sequence[str], find: Find | None, *, alone: bool) -> Target:
    if "/" in word:
        return _read_target(None, word)
    if len(able) == 1:
        return Target(BY_NAME[able[0]], word)
    found = find(word, able) if find is not None else None
    if found is not None:
        return found
    if _is_bare(able):
        return Target(BY_NAME[able[0]], word)
    try:
        return Target(find_noun(word), word)
    except NotFound as unknown:  # it is none, or the server doesn't answer
        if alone and able and is_guess(unknown):
            able_words = join_words([BY_NAME[name].title for name in able], "or")
            unknown.message = f'no {able_words} named "{word[:80]}", nor a kind of that name'
            unknown.hint = f"give the name of one, or KIND/NAME; {unknown.hint}"
        raise


def _is_bare(able: Sequence[str]) -> bool:
    """Whether a NAME alone can be of one kind only, or of workloads."""
    return len(able) == 1 or (bool(able) and all(is_workload(name) for name in able))


def _read_target(kind: Kind | None, word: str) -> Target:
    before, slash, name = word.partition("/")
    if not slash:
        before, name = "", word
    try:
        named = find_noun(before) if before else kind
    except NotFound as unknown:
        if kind is None or is_guess(unknown):
            raise
        other = "; of another project: -p PROJECT" if kind.scope == "project" else ""
        raise usage(f"{word!r} is not {kind.a_title}'s name", f"give NAME or {kind.name}/NAME{other}") from None
    if named is None:
        raise usage(f"{word!r}: give KIND/NAME, like vm/{word.strip('/') or 'web'}")
    if kind is not None and named.name != kind.name:
        raise usage(f"{word} is not {kind.a_title}")
    if not name or "/" in name:
        raise usage(f"{word!r} is not an object's name: give KIND/NAME")
    return Target(named, name)


def join_words(words: Sequence[str], last: str) -> str:
    """``a, b and c``"""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


class _Word(str):
    """Distinct from other words of the same letters."""


def choose_command(
    command: click.Command, args: Sequence[str], find: Callable[[Kind], click.Command | None], context: click.Context
) -> tuple[str, click.Command, list[str]]:
    """The command that reads ``args`` in place of ``command``, and its arguments: a kind that has been said is said. Before them
    the name of the kind whose flags it has, "": no kind's."""
    known, whose, unread = _list_flags(command), "", command
    for kind in {find_kind(noun).name: find_kind(noun) for noun in map(_read_noun, args) if is_noun(noun)}.values():
        own = find(kind)
        if own is None or _list_flags(own) <= known:
            continue
        marked = [_Word(arg) for arg in args]
        try:
            words: Sequence[str] = (
                own.make_parser(click.Context(own, context)).parse_args([*marked])[0].get("words") or ()
            )
        except click.UsageError:  # its own error says which option is wrong
            whose, unread = kind.name, own
            continue
        nouns = [find_kind(noun).name if is_noun(noun) else "" for noun in map(_read_noun, words)]
        if not nouns or nouns[0] != kind.name or set(nouns[1:]) - {"", kind.name}:
            continue
        if "/" in words[0]:
            return kind.name, own, list(args)
        if len(words) > 1:
            return kind.name, own, [arg for arg, mark in zip(args, marked, strict=True) if mark is not words[0]]
    return whose, unread, list(args)


def _read_noun(word: str) -> str:
    return word.partition("/")[0]


def _list_flags(command: click.Command) -> set[str]:
    return {name for param in command.params if isinstance(param, click.Option) for name in param.opts}

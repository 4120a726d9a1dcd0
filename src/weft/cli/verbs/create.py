"""`weft vm create web --image tiny …`, `weft create vm web …`: one object from flags, from a file, or both."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from weft.cli import options
from weft.cli.code import Packed, bring
from weft.cli.finishing import Done, finish, plan_wait
from weft.cli.flags import flag_parameter, make_flags, name_flag, read_flags, read_pairs
from weft.cli.function_flags import make_more_flags, read_more_flags
from weft.cli.grammar import MAKEABLE, Entry, Words, load
from weft.cli.manifest.check import Manifest, check_spec, locate
from weft.cli.manifest.config import read_config
from weft.cli.manifest.document import Document, split_path
from weft.cli.output.formats import print_object
from weft.cli.runtime_base import provide_bases
from weft.cli.session import Session
from weft.cli.verbs.add import add_file
from weft.cli.words import Target
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, find_kind
from weft.objects.errors import NotFound
from weft.objects.identity import check_labels, check_name


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    return make_command(verb, kind) if kind else _Kinds(verb, help="Make an object of a kind.")


def make_command(verb: str, kind: Kind) -> click.Command:
    """The command that makes objects of ``kind``, with a flag for every field of its spec."""
    flags = [*make_more_flags(kind), *make_flags(kind)]
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME [-- COMMAND...]" if kind.name == "container" else "NAME"),
        click.Option(["--name", "named"], metavar="NAME", hidden=True, help="The name, if not given as an argument."),
        *flags,
        click.Option(["-f", "--config"], metavar="FILE", help="Whole object or its spec, in YAML, JSON, TOML or nix."),
        click.Option(["-l", "--label", "labels"], multiple=True, metavar="KEY=VALUE", help="A label."),
        click.Option(["--dry-run"], is_flag=True, help="Check it at the server and store nothing."),
        *options.waits(flags),
        options.output(),
    ]
    return options.build(
        verb, f"Make a {kind.title}: {kind.summary[:1].lower()}{kind.summary[1:]}.", _run, kind, params
    )


class _Kinds(Words):
    """``weft create KIND …``"""

    def entries(self) -> dict[str, Entry]:
        return {name: Entry("create", BY_NAME[name].summary) for name in MAKEABLE}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            kind = find_kind(cmd_name)
        except NotFound:
            return None
        return load("create", self.entries()[kind.name], kind) if kind.name in MAKEABLE else None


def _run(session: Session, kind: Kind, words: tuple[str, ...], dry_run: bool, **given: Any) -> int:
    if "/" in (given.get("spec__iso") or "") and not dry_run:
        given["spec__iso"] = add_file(session, given["spec__iso"])
    if kind.name == "container":
        words = read_command(given, "spec__command", words)
    manifest, code = read_wish(session, kind, words, given)
    if code is not None:
        bring(session, code)
    if kind.name == "function" and not dry_run:
        provide_bases(session, [manifest["spec"]])
    made = session.client.create(manifest, dry_run=dry_run)
    target = Target(kind, made["name"])
    if dry_run:
        return _show_dry(session, target, made)
    wait = plan_wait(made, target, "create")
    return finish(session, [Done(target, made, "create")], [wait] if wait else [])


def _show_dry(session: Session, target: Target, made: dict[str, Any]) -> int:
    if session.is_data:
        print_object(session, made)
    else:
        print(f"{target.what}  would be created")
    return 0


def read_wish(
    session: Session, kind: Kind, words: tuple[str, ...], given: dict[str, Any]
) -> tuple[dict[str, Any], Packed | None]:
    """The manifest that flags and ``--config`` make together, and a function's code; flags win. Raises InvalidInput at the field's
    place."""
    document = read_config(given["config"], kind) if given["config"] else Document({"spec": {}}, "")
    written = document.value
    manifest: dict[str, Any] = {
        "kind": kind.name,
        "name": _choose_name(kind, words, given["named"], written.get("name")),
    }
    project = session.project or written.get("project")
    if project and kind.scope == "project":
        manifest["project"] = project
    labels = {**(written.get("labels") or {}), **read_pairs(given["labels"], "label")}
    if labels:
        check_labels(labels)
        manifest["labels"] = labels
    manifest["spec"] = read_flags(kind, given, written["spec"])
    beside = Path(given["config"]).parent if given["config"] not in (None, "-") else None
    code = read_more_flags(kind, given, manifest["spec"], beside)
    for problem in check_spec(kind, manifest["spec"]):
        path = split_path(problem.field or "")
        if path in document.places and flag_parameter(problem.field or "") not in _given(given):
            raise locate(Manifest(kind, manifest, document), problem)
        raise name_flag(kind, problem)
    return manifest, code


def read_command(given: dict[str, Any], parameter: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """The words but for a command after ``--``, which goes where flag ``parameter`` puts one; that flag is given once, as a shell
    reads it, or once for each word."""
    name, command = (words[:0], words) if given["named"] else (words[:1], words[1:])
    flags: tuple[str, ...] = given[parameter] or ()
    if flags and command:
        raise click.UsageError("the command is given twice: with --command, and after --")
    given[parameter] = tuple(shlex.split(flags[0])) if len(flags) == 1 else (*flags, *command)
    return name


def _given(given: dict[str, Any]) -> list[str]:
    return [name for name, value in given.items() if value not in (None, ())]


def _choose_name(kind: Kind, words: tuple[str, ...], named: str | None, written: str | None) -> str:
    if len(words) + bool(named) > 1:
        raise click.UsageError(f"one name is enough: {' '.join([*words, *([named] if named else [])])}")
    name = words[0] if words else named or written
    if not name:
        raise click.UsageError("the name is missing: give NAME")
    noun, sign, rest = name.partition("/")
    if sign and noun.lower() in (kind.name, kind.plural, *kind.aliases):
        name = rest
    return check_name(name)

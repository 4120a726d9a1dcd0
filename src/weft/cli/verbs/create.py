"""`weft vm create web --image tiny …`, `weft create vm web …`: one object from flags, from a file, or both."""

from __future__ import annotations

import importlib
import re
import secrets
import shlex
from pathlib import Path
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.flags import flag_fields, flag_name, flag_parameter, make_flags, name_flag, read_flags, read_pairs
from weft.cli.command.grammar import MAKEABLE, Entry, Words, load
from weft.cli.command.lookup import is_image
from weft.cli.command.target import Target, usage
from weft.cli.function.code import Packed, bring
from weft.cli.function.flags import make_more_flags, read_more_flags
from weft.cli.manifest.check import WrittenManifest, check_spec, locate
from weft.cli.manifest.config import read_config
from weft.cli.manifest.document import Document, split_path
from weft.cli.preview.dry_run import show_dry_run
from weft.cli.runtime_image import has_code, provide_bases
from weft.cli.session import Session
from weft.cli.verbs.image import add_file
from weft.cli.wait.finish import finish_one
from weft.cli.wait.follow import print_one
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, find_kind
from weft.objects.errors import NotFound, begin_small
from weft.objects.identity import check_labels, check_name
from weft.objects.image.reference import held_name
from weft.objects.schema import FieldDoc

# Kinds that run a command, and the parameters of the command's and the image's flags.
RUNS = {"container": "spec", "job": "spec__task"}
_MARKS, _MARK_LENGTH = "bcdfghjkmnpqrstvwxz23456789", 4  # no letters that form words or look like others


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    return make_command(verb, kind) if kind else _Kinds(verb, help="Create an object of a kind.")


def make_command(verb: str, kind: Kind) -> click.Command:
    """The command that makes objects of ``kind``, with a flag for every field of its spec."""
    flags = [*make_more_flags(kind), *make_flags(kind)]
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME [IMAGE] [-- COMMAND...]" if kind.name in RUNS else "NAME"),
        *flags,
        *options.making(),
        *options.dry_runs(),
        *options.waits(flags),
        options.output(),
    ]
    return options.build(
        verb,
        f"Create {_describe(kind)}.",
        _run,
        kind,
        params,
        command_class=options.WithCommand,
    )


def _describe(kind: Kind) -> str:
    summary = begin_small(kind.summary)
    return summary if summary.startswith(kind.a_title) else f"{kind.a_title}: {summary}"


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


def _run(session: Session, kind: Kind, words: tuple[str, ...], **given: Any) -> int:
    return create_one(session, kind, words, **given)[0]


def create_one(
    session: Session, kind: Kind, words: tuple[str, ...], dry_run: str | None, **given: Any
) -> tuple[int, str]:
    """Create the object that the flags describe; the exit code, and its name."""
    iso = given.get("spec__iso") or ""
    if "/" in iso and not dry_run and not (held_name(iso) and not Path(iso).exists()):
        added, given["spec__iso"] = add_file(session, iso)
        if added:
            return added, ""
    words = read_words(session, kind, words, given)
    manifest, code = read_spec(session, kind, words, given)
    target = Target(kind, manifest["name"])
    if dry_run == "client":
        print_one(session, manifest, f"{target.what}  would be created; no server was contacted")
        return 0, target.name
    if code is not None:
        bring(session, code)
    if has_code(kind) and not dry_run:
        provide_bases(session, [manifest["spec"]], lambda: session.client.create(manifest, dry_run=True))
    made = session.client.create(manifest, dry_run=bool(dry_run))
    for user, identity in (made.get("identities") or {}).items():
        session.notify(f"user {user}  {identity or 'not linked with the OIDC provider'}")
    preview = importlib.import_module("weft.cli.preview.pools")  # what the help needn't load
    importlib.import_module("weft.cli.preview.ranges").warn_of_ranges(session, [made])
    excess: int = preview.warn_of_pools(session, [made])
    if dry_run:
        return show_dry_run(session, target, made, "created") or excess, target.name
    return finish_one(session, target, made, "create") or excess, target.name


def read_spec(
    session: Session, kind: Kind, words: tuple[str, ...], given: dict[str, Any], *, make_up: bool = False
) -> tuple[dict[str, Any], Packed | None]:
    """The manifest that flags and ``--config`` make together, and a function's code; flags win. ``make_up``: one without a name
    gets one. Raises InvalidInput at the field's place."""
    document = read_config(given["config"], kind) if given["config"] else Document({"spec": {}}, "")
    written = document.value
    spec = read_flags(kind, given, written["spec"])
    made_up = _make_up_name(kind, spec) if make_up else None
    if make_up and not (made_up or words or given["named"] or written.get("name")):
        raise usage("the image is missing: give IMAGE, or --image IMAGE")
    manifest: dict[str, Any] = {
        "kind": kind.name,
        "name": _choose_name(kind, words, spec, given["named"], written.get("name") or made_up),
    }
    project = session.project or written.get("project")
    if project and kind.scope == "project":
        manifest["project"] = project
    if session.given_project and kind.access.readers == "administered":
        spec["project"] = session.given_project
    labels = {**(written.get("labels") or {}), **read_pairs(given["labels"], "label")}
    if labels:
        check_labels(labels)
        manifest["labels"] = labels
    manifest["spec"] = spec
    beside = Path(given["config"]).parent if given["config"] not in (None, "-") else None
    code = read_more_flags(kind, given, manifest["spec"], beside)
    for problem in check_spec(kind, manifest["spec"]):
        path = split_path(problem.field or "")
        if path in document.places and flag_parameter(problem.field or "") not in _given(given):
            raise locate(WrittenManifest(kind, manifest, document), problem)
        raise name_flag(kind, problem)
    return manifest, code


def read_words(
    session: Session, kind: Kind, words: tuple[str, ...], given: dict[str, Any], *, make_up: bool = False
) -> tuple[str, ...]:
    """The name in NAME [IMAGE] [-- COMMAND]; image and command go where their flags would put them. If weft makes up the name
    (``make_up``), one word alone is the image, unless a flag gives that. --command is given once, as a shell reads it, or once
    for each word. Raises UsageError for a word too many."""
    argv, place = options.read_argv(), RUNS.get(kind.name)
    if place is None:
        if argv:
            raise usage(f"{kind.a_title} has no command; leave out -- and what follows")
        return words
    alone = make_up and len(words) == 1 and not given[f"{place}__image"] and not given["config"]
    own = 0 if given["named"] or alone else 1
    names, images, others = words[:own], words[own : own + 1], words[own + 1 :]
    if others or (images and given[f"{place}__image"]):
        image = given[f"{place}__image"]
        count = _count_own(session, words, image) if make_up and own else own + (not image)
        raise usage(f"{words[count]!r}: a command comes after --", options.retype(count))
    if images:
        given[f"{place}__image"] = images[0]
    flags: tuple[str, ...] = given[f"{place}__command"] or ()
    if flags and argv:
        raise usage("the command is given twice: use --command or --, not both")
    if argv and not argv[0]:
        raise usage(
            "the command after -- is an empty word", "name a program, or leave out --: the image's command runs"
        )
    given[f"{place}__command"] = tuple(shlex.split(flags[0])) if len(flags) == 1 else (*flags, *(argv or ()))
    return names


def _count_own(session: Session, words: tuple[str, ...], image: str | None) -> int:
    """How many of the words are those of a command that needs no name, [NAME] IMAGE, or [NAME] before --image. The others are
    the command to run."""
    if image:
        typed = options.read_typed()
        return int(typed.index(words[0]) < next(at for at, arg in enumerate(typed) if arg.startswith("--image")))
    return 2 if not is_image(session, words[0]) and is_image(session, words[1]) else 1


def _command_path() -> str:
    return click.get_current_context().command_path


def _given(given: dict[str, Any]) -> list[str]:
    return [name for name, value in given.items() if value not in (None, ())]


def _choose_name(
    kind: Kind, words: tuple[str, ...], spec: dict[str, Any], named: str | None, written: str | None
) -> str:
    if len(words) + bool(named) > 1:
        lacking = [doc for doc in flag_fields(kind) if doc.required and doc.path.count(".") == 1]
        hint = (
            f"write --{flag_name(lacking[0])} {words[-1]}"
            if len(lacking) == 1 and not _is_set(lacking[0], spec)
            else ""
        )
        raise usage(f"more than one name given: {' '.join([*words, *([named] if named else [])])}", hint)
    name = words[0] if words else named or written
    if not name:
        raise usage("the name is missing: give NAME")
    if words and kind.name in RUNS and not _image_of(kind, spec):
        raise usage(
            f"{name!r} is the name, and the image is missing", f"{_command_path()} {name} IMAGE, or --image IMAGE"
        )
    noun, sign, rest = name.partition("/")
    if sign and noun.lower() in (kind.name, kind.plural, *kind.display.aliases):
        name = rest
    return check_name(name)


def _is_set(doc: FieldDoc, spec: dict[str, Any]) -> bool:
    return spec.get(doc.path.partition(".")[2]) is not None


def _image_of(kind: Kind, spec: dict[str, Any]) -> str:
    """The image of the new object; empty if it has none."""
    return str(dig({"spec": spec}, f"{kind.template[1]}.image", ""))


def _make_up_name(kind: Kind, spec: dict[str, Any]) -> str | None:
    """``busybox-x7k2``: the image, and a few random letters; None without an image."""
    image = _image_of(kind, spec).rpartition("/")[2].partition("@")[0].partition(":")[0]
    base = re.sub(r"[^a-z0-9]+", "-", image.lower()).strip("-")
    if not base:
        return None
    mark = "".join(secrets.choice(_MARKS) for _ in range(_MARK_LENGTH))
    return f"{base[: kind.admission.longest_name - _MARK_LENGTH - 1].rstrip('-')}-{mark}"

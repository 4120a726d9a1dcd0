"""`weft apply -f FILE|DIR|-`: bring objects to what files say; all of it is checked before any of it is done."""

from __future__ import annotations

from typing import Any

import click

from weft.cli import options
from weft.cli.code import Packed, bring, pack_documents
from weft.cli.exit_codes import OK
from weft.cli.finishing import Done, finish, plan_wait
from weft.cli.grammar import Entry
from weft.cli.manifest.check import Manifest, locate_refusal, read_manifests
from weft.cli.manifest.files import read_documents
from weft.cli.runtime_base import provide_bases
from weft.cli.session import Session
from weft.cli.watching import Wait
from weft.cli.words import Target, usage
from weft.kinds.function_code import DIGEST
from weft.kinds.record import Kind
from weft.objects.errors import WeftError
from weft.objects.quantity import format_bytes

_COST = {
    "live": "at once",
    "restart": "at its next restart",
    "start": "at its next start",
    "replace": "by a new one",
    "never": "never",
}
SAID_BY_OTHERS = ("spec.code_size",)  # it goes with the code
_VERBS = {"created": "create", "updated": "update", "unchanged": "unchanged"}


def files() -> list[click.Parameter]:
    """``paths`` and ``files``: what to read, as arguments or by -f."""
    return [
        click.Argument(["paths"], nargs=-1, metavar="[FILE|DIR|-]..."),
        file_option(),
    ]


def file_option() -> click.Option:
    """``files``."""
    help_ = "What to read; may be repeated."
    return click.Option(["-f", "--filename", "files"], multiple=True, metavar="FILE|DIR|-", help=help_)


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        *files(),
        *options.dry_runs(),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, "Create or change the objects in files until they are as written.", _run, kind, params)


def _run(
    session: Session, kind: Kind | None, paths: tuple[str, ...], files: tuple[str, ...], dry_run: str | None
) -> int:
    if dry_run == "client":
        for manifest in read_files((*files, *paths), session.project):
            print(f"{manifest.what}  is well written; no server was asked")
        return OK
    manifests = read_all(session, (*files, *paths))
    if not dry_run:
        provide_bases(session, [one.data["spec"] for one in manifests if one.kind.name == "function"])
    results = send(session, manifests, bool(dry_run))
    done: list[Done] = []
    waits: list[Wait] = []
    for manifest, result in zip(manifests, results, strict=True):
        obj, verb = result["object"], _VERBS[result["action"]]
        target = Target(manifest.kind, obj["name"])
        told = f"{'would be ' * (dry_run is not None and verb != 'unchanged')}{_tell(result)}"
        done.append(Done(target, obj, verb, told))
        wait = None if dry_run or verb == "unchanged" else plan_wait(obj, target, verb)
        waits += [wait] if wait else []
    return finish(session, done, waits)


def read_all(session: Session, files: tuple[str, ...]) -> list[Manifest]:
    """The manifests in ``files``, checked as far as one can without asking the server; functions' code is brought there."""
    packed: list[Packed] = []
    manifests = read_files(files, session.project, packed)
    for code in packed:
        bring(session, code)
    return manifests


def read_files(files: tuple[str, ...], project: str | None, packed: list[Packed] | None = None) -> list[Manifest]:
    """The manifests in ``files``, checked, with functions' code put into ``packed``. Raises UsageError where there is none."""
    if not files:
        raise usage("no file is given", f"{click.get_current_context().command_path} FILE, or - for standard input")
    documents = read_documents(files)
    code = pack_documents(documents)
    manifests = read_manifests(documents, project)
    if not manifests:
        raise click.UsageError(f"{', '.join(files)}: nothing in it")
    if packed is not None:
        packed += code
    return manifests


def send(session: Session, manifests: list[Manifest], dry_run: bool) -> list[dict[str, Any]]:
    """What the server did, or would do, for each manifest; its refusal names the place in the file."""
    try:
        return session.client.apply([manifest.data for manifest in manifests], dry_run=dry_run)
    except WeftError as refusal:
        raise locate_refusal(refusal, manifests) from None


def _tell(result: dict[str, Any]) -> str:
    changes = result.get("changes") or []
    if result["action"] != "updated" or not changes:
        return str(result["action"])
    return "updated: " + ", ".join(
        describe_change(change) for change in changes if change["path"] not in SAID_BY_OTHERS
    )


def describe_change(change: dict[str, Any]) -> str:
    """``spec.cpu 1 → 2 (at its next restart)``"""
    cost = _COST.get(str(change.get("mode")), "at once")
    return f"{change['path']} {show_value(change.get('old'))} → {show_value(change.get('new'))} ({cost})"


def show_value(value: Any, type_: str = "") -> str:
    """A field's value in one short piece; ``type_`` as the schema calls it."""
    if value is None or value == []:
        return "–"
    if type_ == "size":
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    text = str(value).splitlines()[0] if isinstance(value, str) and value else str(value)
    if DIGEST.fullmatch(text):
        return f"{text[:12]}…"
    return text if len(text) <= 60 else text[:59] + "…"

"""`weft backup ls monday /etc`: files in a backup. `weft backup get monday /etc/hostname -o FILE`: one of them; with `-r` all of a
folder, unpacked or as a tar archive."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import click
import msgspec

from weft.cli.backup.unpack import unpacked
from weft.cli.command import options
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.target import usage
from weft.cli.output.form import read_form
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.local_time import render_time
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import clean
from weft.cli.session import Session
from weft.cli.stream.client import Stream, open_stream, write_bytes
from weft.cli.stream.whole_file import refuse_existing, written_whole
from weft.cli.verbs.get import show_objects
from weft.cli.verbs.list import list_kind
from weft.kinds.record import Kind
from weft.objects.errors import NotFound
from weft.objects.quantity import format_bytes

_COLUMNS = make_columns("NAME!", "KIND", "SIZE>", "MODE", "CHANGED", "TARGET~")


def _place() -> list[click.Parameter]:
    return [
        click.Option(
            ["--disk"],
            metavar="NAME",
            default="root",
            help="The disk: root, or a volume's name as in the backup. [root]",
        ),
        click.Option(
            ["--partition"],
            type=click.IntRange(0, 1000),
            metavar="N",
            help="The partition; 0: the whole disk. [the largest with ext4]",
        ),
    ]


def ls_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="BACKUP [PATH]"),
        *_place(),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, "List files in a backup; without a name, the backups.", _ls, kind, params)


def _ls(session: Session, kind: Kind, words: tuple[str, ...], disk: str, partition: int | None) -> int:
    if not words:
        list_kind(session, kind, (), (), every=False, watch=False)
        return OK
    if len(words) > 2:
        raise usage("give one backup and one path", "weft backup ls BACKUP /etc")
    found = bytearray()

    def take(descriptor: int, data: bytes) -> None:
        if descriptor == 1:
            found.extend(data)
        else:
            session.notify(data.decode(errors="replace"))

    _run(session, words[0], _ask("list", words[1] if len(words) == 2 else "/", disk, partition), take)
    entries = [msgspec.json.decode(line) for line in found.splitlines()]
    if session.is_document:
        print_data(session, {"items": entries})
    else:
        print_rows(session, _COLUMNS, [_draw(one) for one in entries])
    return OK


def _draw(entry: dict[str, Any]) -> list[str]:
    size = format_bytes(entry.get("size", 0)) if entry["kind"] == "file" else "–"
    changed = render_time(entry.get("modified", 0))
    return [
        *(clean(entry["name"]), entry["kind"], size, f"{entry.get('mode', 0):04o}", changed),
        clean(entry.get("target", "")) or "–",
    ]


def get_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="BACKUP [/PATH]"),
        click.Option(
            ["-o", "--output", "out"],
            metavar="FILE|FOLDER|FORM",
            help="The file to write, with -r a new folder, or an archive if it ends in .tar; of a backup: its form.",
        ),
        options.replace(),
        click.Option(["-r", "--recursive"], is_flag=True, help="All of a folder; without -o as a tar archive."),
        *_place(),
        *options.selectors(kind),
        options.all_projects(),
        *options.listing(),
        *options.table(),
    ]
    summary = "Copy a file or a folder out of a backup; without a path, show backups."
    return options.build(verb, summary, _get, kind, params)


def _get(
    session: Session,
    kind: Kind,
    words: tuple[str, ...],
    out: str | None,
    force: bool,
    recursive: bool,
    disk: str,
    partition: int | None,
    **selection: Any,
) -> int | None:
    paths = [word for word in words if word.startswith("/")]
    if not paths and len(words) == 2 and "/" not in words[0] and (out is None or "/" in out or "." in out):
        _explain_path(session, words)
    if not paths and recursive:
        raise usage("-r: name the folder in the backup", "weft backup get BACKUP /etc -r -o FOLDER")
    if not paths:
        session.given_form = read_form(out, ()) if out is not None else None
        return show_objects(session, kind, words, **selection)
    if len(paths) > 1 or len(words) != 2 or words[1] != paths[0]:
        raise usage("give one backup and one path in it", "weft backup get BACKUP /etc/hostname -o FILE")
    asked = _ask("tree" if recursive else "read", paths[0], disk, partition)
    if recursive and out in (None, "-") and sys.stdout.isatty():
        raise usage("-r: an archive is nothing to look at", "give -o FOLDER, -o FILE.tar, or pipe it: … -r | tar t")
    if out in (None, "-"):
        _run(session, words[0], asked, lambda to, data: _take(session, to, data, 1))
        return OK
    if recursive and not str(out).endswith(".tar"):
        with unpacked(Path(str(out))) as take:

            def unpack(to: int, data: bytes) -> None:
                take(data) if to == 1 else _take(session, to, data, 1)

            _run(session, words[0], asked, unpack)
        return OK
    refuse_existing(Path(str(out)), "-o", force=force)
    with _written(
        Path(str(out)), 0o600 if recursive else _find_mode(session, words[0], {**asked, "act": "list"})
    ) as descriptor:
        _run(session, words[0], asked, lambda to, data: _take(session, to, data, descriptor))
    return OK


def _take(session: Session, to: int, data: bytes, descriptor: int) -> None:
    """A piece of the file, or a note for the person."""
    if to == 1:
        write_bytes(descriptor, data)
    else:
        session.notify(data.decode(errors="replace"))


def _explain_path(session: Session, words: tuple[str, ...]) -> None:
    """Raises UsageError for a path without its slash: the second of two names isn't a backup, and the first one is."""
    names = {str(one["name"]) for one in session.client.list("backup").items}
    if words[0] in names and words[1].removeprefix("backup/") not in names:
        raise usage(
            f"{words[1]!r} is neither a backup nor a path",
            f"a path begins with /: weft backup get {words[0]} /{words[1]}",
        )


def _find_mode(session: Session, backup: str, asked: dict[str, Any]) -> int:
    """The mode of the one file; that of a folder, which isn't written, is not needed."""
    lines = bytearray()
    _run(session, backup, asked, lambda to, data: lines.extend(data) if to == 1 else None)
    entries = lines.splitlines()
    return int(msgspec.json.decode(entries[0]).get("mode", 0o600)) if len(entries) == 1 else 0o600


@contextlib.contextmanager
def _written(path: Path, mode: int) -> Iterator[int]:
    """A descriptor to write to; a file at ``path`` is replaced only once all is written, a pipe or a device is written to."""
    if path.is_dir():
        raise usage(f"-o: {path} is a folder", "give the file to write")
    if path.exists() and not path.is_file():
        descriptor = os.open(path, os.O_WRONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        return
    path = Path(os.path.realpath(path))  # a link stays, as with cp
    try:
        with written_whole(path, mode) as descriptor:
            yield descriptor
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, str(path)) from None  # not the name of our own file


def _ask(act: str, path: str, disk: str, partition: int | None) -> dict[str, Any]:
    if any(0xD800 <= ord(one) < 0xE000 for one in path):  # what Python makes of other bytes
        raise usage(
            f"the path {os.fsencode(path)!r} is not UTF-8",
            "restore the backup under a new name, and copy the file from there",
        )
    return {"act": act, "path": path, "disk": disk, "partition": -1 if partition is None else partition}


def _run(session: Session, backup: str, asked: dict[str, Any], write: Any) -> None:
    """Raises the error that the node sent."""
    name = backup.removeprefix("backup/")
    sys.stdout.flush()
    try:
        with open_stream(session.client, "backup", name, "files", asked) as sock:
            Stream(sock, write=write).run(None)
    except NotFound as missing:
        if missing.field == "path" and not missing.hint:
            raise describe_missing(missing, name, asked, session.in_project) from None
        raise


def describe_missing(missing: NotFound, backup: str, asked: dict[str, Any], in_project: str) -> NotFound:
    """The error for a path that isn't in a backup, with what lists the folder that it would be in."""
    words = [backup, str(PurePosixPath(asked["path"]).parent)]
    words += ["--disk", asked["disk"]] if asked["disk"] != "root" else []
    words += ["--partition", str(asked["partition"])] if asked["partition"] >= 0 else []
    hint = f"weft backup ls {shlex.join(words)}{in_project} shows what is there"
    return NotFound(f"backup/{backup}: {missing.message}", field="path", hint=hint, details=missing.details)

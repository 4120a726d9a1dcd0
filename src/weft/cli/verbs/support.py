"""`weft support bundle`: one archive for fault finding from afar, without secrets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

import weft
from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.settings import find_settings
from weft.cli.output.timestamp import render_moments
from weft.cli.session import Session
from weft.cli.stream.whole_file import refuse_existing
from weft.cli.verbs.doctor import examine
from weft.cli.verbs.version import ask_server
from weft.client.context import FILE, FOLDER
from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.errors import InvalidInput, WeftError
from weft.objects.quantity import format_bytes
from weft.trust.redaction import hide_in_data, hide_in_text

_TAIL_BYTES = 256 * 1024  # of each log
_MOST_LOGS = 100  # the newest ones
_EVENTS = 1000
_LOGS = ("qemu.log", "dnsmasq.log", "shim.log", "dump.log", "restore.log")  # of guests' own programs, not of guests
_SECRET_FILES = (FILE, "*.token", "*.key", "seal*", "ticket*")  # files whose content is a secret


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(["bundle"]), default="bundle", metavar="bundle"),
        click.Option(["--file"], metavar="FILE", help="Archive to write. [weft-support-VERSION.tar.gz]"),
        options.replace(),
        click.Option(
            ["--state", "folder"], metavar="DIR", help="The state folder whose logs to pack. [the .weft of this clone]"
        ),
    ]
    return options.build(
        verb,
        "Pack versions, settings, doctor's findings, objects and logs into one archive, without secrets.",
        _run,
        kind,
        params,
    )


def _run(session: Session, kind: Kind | None, act: str, file: str | None, force: bool, folder: str | None) -> int:
    session.would("read objects, events and logs, and write one archive without secrets")
    path = Path(file or f"weft-support-{weft.__version__}.tar.gz")
    refuse_existing(path, "--file", force=force)
    state = Path(folder) if folder else _find_state()
    known = _list_known(session, state)
    try:
        if force:
            path.unlink(missing_ok=True)  # the new one is its owner's alone, whatever the former was
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as problem:
        raise InvalidInput(
            f"--file {path}: {(problem.strerror or '').lower()}", field="--file", hint="give --file FILE"
        ) from None
    count = 0
    with os.fdopen(descriptor, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in _collect(session, state, known):
            _put(archive, f"weft-support/{name}", text.encode("utf-8", "replace"))
            count += 1
    print(path)
    session.notify(
        f"{count} files, {format_bytes(path.stat().st_size)}; secrets are removed: check the archive before you send it"
    )
    return 0


def _put(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode = len(content), 0o600
    archive.addfile(about, io.BytesIO(content))


def _collect(session: Session, state: Path | None, known: list[str]) -> Iterator[tuple[str, str]]:
    """The archive's files by name; one that can't be read holds the reason instead."""

    def write(value: Any) -> str:
        hidden = hide_in_data(msgspec.to_builtins(value), known)
        return msgspec.json.format(render_moments(msgspec.json.encode(hidden)), indent=2).decode() + "\n"

    server, trouble = ask_server(session)
    about = {"client": weft.__version__, "server": server, "trouble": trouble, "python": platform.python_version()}
    yield "versions.json", write({**about, "machine": platform.platform()})
    yield "settings.json", write({name: one._asdict() for name, one in find_settings(session).items()})
    yield "doctor.json", write([finding._asdict() for finding in examine(session)])
    for kind in KINDS:
        try:
            items = session.client.list(kind.name, all_projects=True).items
        except WeftError as problem:
            yield f"objects/{kind.plural}.txt", hide_in_text(f"{problem.message}\n", known)
            continue
        if items:
            yield f"objects/{kind.plural}.json", write({"items": items})
    try:
        yield "events.json", write({"items": list(session.client.events(limit=_EVENTS))})
    except WeftError as problem:
        yield "events.txt", hide_in_text(f"{problem.message}\n", known)
    if state is not None:
        for path in _find_logs(state):
            yield f"logs/{path.relative_to(state)}", hide_in_text(_read_tail(path), known)


def _find_state() -> Path | None:
    here = Path.cwd()
    return next((place / FOLDER for place in (here, *here.parents) if (place / FOLDER).is_dir()), None)


def _find_logs(state: Path) -> list[Path]:
    """The newest logs below ``state``; what guests and functions print is theirs, and stays."""
    found = [
        path for path in state.rglob("*.log") if path.is_file() and not path.is_symlink() and "cache" not in path.parts
    ]
    found = [path for path in found if path.name in _LOGS or path.parent in (state, state / "log")]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_MOST_LOGS]


def _read_tail(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return log.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError as problem:
        return f"{path.name} can't be read: {problem.strerror}\n"


def _list_known(session: Session, state: Path | None) -> list[str]:
    """This machine's secrets, to be found in any form."""
    texts = [session.environ.get("WEFT_TOKEN", ""), session.environ.get("AWS_SECRET_ACCESS_KEY", "")]
    with contextlib.suppress(WeftError):  # without a context there is none to hide
        texts.append(session.client.context.token)
    for pattern in _SECRET_FILES if state is not None else ():
        texts += [
            _read_tail(path)
            for path in (state or Path()).rglob(pattern)
            if path.is_file() and path.stat().st_size < 65_536
        ]
    return [word for text in texts for word in _words(text)]


def _words(text: str) -> Iterator[str]:
    """The secrets in what was read: a context's token, or the lines themselves; of a token also its secret part."""
    try:
        content = json.loads(text)
        lines = [str(content["token"])] if isinstance(content, dict) and content.get("token") else []
    except ValueError:
        lines = [line.strip() for line in text.splitlines() if "-----" not in line]
    for line in lines:
        yield from (line, line.rpartition("_")[2])

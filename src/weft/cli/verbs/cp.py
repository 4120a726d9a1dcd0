"""`weft cp FILE web:/path`, `weft cp web:/path FILE`: copy files and folders to or from a guest.

Through the guest's agent, so it needs no SSH: files by ``cat``, folders by ``tar``. What arrives is whole or not there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click

from weft.cli import options
from weft.cli.grammar import Entry, able
from weft.cli.lookup import find_targets
from weft.cli.relay import carry
from weft.cli.session import Session
from weft.cli.words import Target
from weft.kinds.record import Kind
from weft.objects.errors import DriverFailed, InvalidInput, NotFound

# $0 the wanted place, $1 the name to have in a folder, $2 the mode.
_PUT = 'to="$0"; [ -d "$to" ] && to="${to%/}/$1"; cat >"$to.weft-part" && chmod "$2" "$to.weft-part" && mv -f "$to.weft-part" "$to"'
_PUT_FOLDER = 'mkdir -p "$0" && exec tar -x -f - -C "$0"'
_GET = 'if [ -d "$0" ]; then echo folder; elif [ -r "$0" ]; then echo file; else echo none; fi'
_GET_FOLDER = 'exec tar -c -f - -C "$0" .'


class _Place(NamedTuple):
    target: Target | None  # None: this machine
    path: str


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [click.Argument(["places"], nargs=2, metavar="FROM TO")]
    made = options.build(
        verb, "Copy a file or folder: FROM and TO are paths, one of them NAME:PATH in a VM. - is stdin or stdout.",
        _run, kind, params,
    )  # fmt: skip
    made.short_help = entry.summary
    return made


def _run(session: Session, kind: Kind | None, places: tuple[str, str]) -> int:
    source, goal = (_read_place(session, kind, place) for place in places)
    if (source.target is None) == (goal.target is None):
        raise click.UsageError("one of the two is in a VM, as NAME:PATH, like: weft cp notes.txt web:/root/")
    if goal.target is not None:
        return _put(session, source.path, goal.target, goal.path)
    assert source.target is not None
    return _get(session, source.target, source.path, goal.path)


def _read_place(session: Session, kind: Kind | None, text: str) -> _Place:
    name, colon, path = text.partition(":")
    if not colon or text.startswith((".", "/")):
        return _Place(None, text)
    if not path:
        raise click.UsageError(f"{text!r}: the path in the VM is missing, like {name}:/root/")
    return _Place(find_targets(session, kind, [name], able("cp"))[0], path)


def _put(session: Session, source: str, target: Target, path: str) -> int:
    if source == "-":
        return _send(session, target, ["sh", "-c", _PUT, path, "stdin", "644"], sys.stdin.fileno())
    here = Path(source)
    if here.is_dir():
        into = f"{path.rstrip('/')}/{here.resolve().name}" if path.endswith("/") else path
        with subprocess.Popen(["tar", "-c", "-f", "-", "-C", str(here), "."], stdout=subprocess.PIPE) as packing:
            assert packing.stdout is not None
            code = _send(session, target, ["sh", "-c", _PUT_FOLDER, into], packing.stdout.fileno())
        return code or packing.returncode
    try:
        with here.open("rb") as file:
            mode = f"{os.fstat(file.fileno()).st_mode & 0o777:o}"
            return _send(session, target, ["sh", "-c", _PUT, path, here.name, mode], file.fileno())
    except OSError as problem:
        raise InvalidInput(f"{source}: {problem.strerror}", field="FROM") from None


def _get(session: Session, target: Target, path: str, goal: str) -> int:
    if goal == "-":
        return _receive(session, target, ["cat", path], 1)
    what = _ask(session, target, ["sh", "-c", _GET, path])
    if what == "none":
        raise NotFound(f"{target.what} has no file {path} that can be read")
    here = Path(goal)
    name = Path(path).name or target.name
    if what == "folder":
        into = here / name if here.is_dir() else here
        into.mkdir(parents=True, exist_ok=True)
        with subprocess.Popen(["tar", "-x", "-f", "-", "-C", str(into)], stdin=subprocess.PIPE) as unpacking:
            assert unpacking.stdin is not None
            code = _receive(session, target, ["sh", "-c", _GET_FOLDER, path], unpacking.stdin.fileno())
            unpacking.stdin.close()
        return code or unpacking.returncode
    into = here / name if here.is_dir() or goal.endswith("/") else here
    part = into.with_name(f"{into.name}.weft-part")
    try:
        with part.open("wb") as file:
            code = _receive(session, target, ["cat", path], file.fileno())
        if code == 0:
            part.replace(into)
        return code
    except OSError as problem:
        raise DriverFailed(f"{into}: {problem.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def _send(session: Session, target: Target, argv: list[str], stdin: int) -> int:
    return carry(session, target, "exec", {"argv": argv}, stdin, 1)


def _receive(session: Session, target: Target, argv: list[str], stdout: int) -> int:
    return carry(session, target, "exec", {"argv": argv}, None, stdout)


def _ask(session: Session, target: Target, argv: list[str]) -> str:
    """What a command in the guest says."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as answer:
        try:
            _receive(session, target, argv, writing)
        finally:
            os.close(writing)
        return answer.read().decode(errors="replace").strip()

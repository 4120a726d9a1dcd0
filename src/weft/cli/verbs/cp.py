"""`weft cp FILE web:/path`, `weft cp web:/path FILE`: copy files and folders to or from a guest.

Through the guest's agent, so it needs no SSH: files by ``cat``, folders by ``tar``. A file that arrives is whole or not there.
A guest's data is not trusted: see ``untar`` for folders; its answers and errors are bounded.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_targets
from weft.cli.command.target import Target, usage
from weft.cli.output.terminal import clean_lines
from weft.cli.session import Session
from weft.cli.stream.port_forward import carry
from weft.cli.stream.sparse import end_sparse, write_sparse
from weft.cli.stream.untar import Unpacker
from weft.cli.stream.whole_file import written_whole
from weft.kinds.record import Kind
from weft.objects.errors import DriverFailed, InvalidInput, NotFound

# $0 the wanted place, $1 the name to have in a folder, $2 what the part's name begins with, $3 the mode.
_PLACES = 'to="$0"; [ -d "$to" ] && to="${to%/}/$1"; part="${to%"${to##*/}"}.$2.weft-part"; '
# A lost connection ends its input too: only who sends it knows whether all was sent, so it gets its name by a command of its own.
_PUT = _PLACES + (
    """trap 'rm -f "$part"; exit 129' HUP; set -C; umask 077; """
    '{ cat >"$part" && chmod "$3" "$part"; } || { code=$?; rm -f "$part"; exit $code; }'
)
_PUT_NAME = _PLACES + 'mv -f "$part" "$to" || { rm -f "$part"; exit 1; }'
_PUT_FOLDER = 'mkdir -p "$0" && exec tar -x -f - -C "$0"'
_GET = 'if [ -d "$0" ]; then echo folder; elif [ -r "$0" ]; then echo file $(stat -L -c %a "$0" 2>/dev/null); else echo none; fi'
_GET_FOLDER = 'exec tar -c -f - -C "$0" .'
ANSWER_BYTES = 4096  # of a guest's shell's answer about a path
COMPLAINTS_BYTES = 64 << 10  # of its cat's or tar's errors


class _Place(NamedTuple):
    target: Target | None  # None: this machine
    path: str


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [click.Argument(["places"], nargs=2, metavar="FROM TO")]
    made = options.build(
        verb, "Copy a file or folder: FROM and TO are paths, one of them NAME:PATH in a guest. - is stdin or stdout.",
        _run, kind, params,
    )  # fmt: skip
    made.short_help = entry.summary
    return made


def _run(session: Session, kind: Kind | None, places: tuple[str, str]) -> int:
    source, goal = (_read_place(session, kind, place) for place in places)
    if (source.target is None) == (goal.target is None):
        raise click.UsageError("FROM or TO must be a guest's path, NAME:PATH, like: weft cp notes.txt web:/root/")
    if goal.target is not None:
        return _put(session, source.path, goal.target, goal.path)
    assert source.target is not None
    return _get(session, source.target, source.path, goal.path)


def _read_place(session: Session, kind: Kind | None, text: str) -> _Place:
    name, colon, path = text.partition(":")
    if not colon or text.startswith((".", "/")):
        return _Place(None, text)
    if not path:
        raise click.UsageError(f"{text!r}: the path in the guest is missing, like {name}:/root/")
    return _Place(find_targets(session, kind, [name], able("cp"))[0], path)


def _put(session: Session, source: str, target: Target, path: str) -> int:
    if source == "-":
        return _put_file(session, target, path, "stdin", 0o644, sys.stdin.fileno())
    here = Path(source)
    if here.is_dir():
        into = f"{path.rstrip('/')}/{here.resolve().name}" if path.endswith("/") else path
        with subprocess.Popen(["tar", "-c", "-f", "-", "-C", str(here), "."], stdout=subprocess.PIPE) as packing:
            assert packing.stdout is not None
            code = _send(session, target, ["sh", "-c", _PUT_FOLDER, into], packing.stdout.fileno())
        return code or packing.returncode
    try:
        with here.open("rb") as file:
            return _put_file(session, target, path, here.name, os.fstat(file.fileno()).st_mode & 0o777, file.fileno())
    except OSError as problem:
        raise InvalidInput(
            f"{source}: {problem.strerror}", field="FROM", hint="give a file of this machine, or NAME:PATH of a guest's"
        ) from None


def _put_file(session: Session, target: Target, path: str, name: str, mode: int, content: int) -> int:
    words = [path, name, secrets.token_hex(4)]
    code = _send(session, target, ["sh", "-c", _PUT, *words, f"{mode:o}"], content)
    return code or _send(session, target, ["sh", "-c", _PUT_NAME, *words], None)


def _get(session: Session, target: Target, path: str, goal: str) -> int:
    if goal == "-":
        return _receive(session, target, ["cat", path], _print)
    what, _, mode = _ask(session, target, ["sh", "-c", _GET, path]).partition(" ")
    if what == "none":
        raise NotFound(
            f"{target.what} has no readable file {path}",
            hint=f"weft exec {target.what} -- ls -l {Path(path).parent}",
        )
    here = Path(goal)
    name = Path(path).name or target.name
    if what == "folder":
        into = here / name if here.is_dir() else here
        if into != here and into.is_symlink():  # it may have come from the guest itself, with an earlier copy
            raise InvalidInput(f"{into} is a link", field="TO", hint="to use it, name the folder that it leads to")
        return _get_folder(session, target, path, into)
    into = here / name if here.is_dir() or goal.endswith("/") else here
    try:
        with written_whole(into, _read_mode(mode)) as descriptor:
            code = _receive(session, target, ["cat", path], lambda data: write_sparse(descriptor, data))
            end_sparse(descriptor)
            if code:
                raise _Unfinished(code)
    except OSError as problem:
        raise DriverFailed(f"{into}: {problem.strerror}") from None
    except _Unfinished as problem:
        return problem.code
    return 0


class _Unfinished(Exception):
    """The guest's cat ended early, with an exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _read_mode(text: str) -> int:
    """The mode of a guest's file; its owner's alone where the guest doesn't tell."""
    return int(text, 8) if re.fullmatch("[0-7]{1,4}", text, re.ASCII) else 0o600


def _get_folder(session: Session, target: Target, path: str, into: Path) -> int:
    try:
        into.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise usage(
            f"{into} is a file, and a folder is copied", "give a folder, or a name that isn't there yet"
        ) from None
    except OSError as problem:
        raise DriverFailed(f"{into}: {problem.strerror}") from None
    with Unpacker(into) as unpacker:
        code = _receive(session, target, ["sh", "-c", _GET_FOLDER, path], unpacker.feed)
        if code == 0:
            unpacker.finish()
    if unpacker.left_out:
        session.notify(f"left out {unpacker.left_out} devices and pipes, which weft never copies from a guest")
    return code


def _send(session: Session, target: Target, argv: list[str], stdin: int | None) -> int:
    return carry(session, target, "exec", {"argv": argv}, stdin, 1)


def _receive(session: Session, target: Target, argv: list[str], take: Callable[[bytes], object]) -> int:
    """``take`` gets the command's output. Raises DriverFailed for endless errors, and what ``take`` raises."""
    complain = _Short(target, COMPLAINTS_BYTES, _complain)

    def write(descriptor: int, data: bytes) -> None:
        (take if descriptor == 1 else complain)(data)

    return carry(session, target, "exec", {"argv": argv}, None, 1, write)


def _ask(session: Session, target: Target, argv: list[str]) -> str:
    """The one word that a command in the guest prints. Raises DriverFailed for endless output."""
    answer = bytearray()
    _receive(session, target, argv, _Short(target, ANSWER_BYTES, answer.extend))
    return answer.decode(errors="replace").strip()


class _Short:
    """Takes what a guest prints, up to ``most`` bytes. Raises DriverFailed beyond."""

    def __init__(self, target: Target, most: int, take: Callable[[bytes], object]) -> None:
        self._target, self._left, self._take = target, most, take

    def __call__(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise DriverFailed(
                f"{self._target.what} printed far more than expected: copying stopped",
                hint="its shell, cat or tar has been replaced or is broken",
            )
        self._take(data)


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _complain(data: bytes) -> None:
    """Print the complaint on our own terminal, which a guest doesn't steer."""
    sys.stderr.write(clean_lines(data.decode(errors="replace")))
    sys.stderr.flush()

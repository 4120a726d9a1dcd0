"""Debian packages of weft in a folder: what they say of themselves (deb(5), deb-control(5)), and their way to the server."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from weft.client.answer import raise_problem
from weft.client.connection import FileBody
from weft.client.http import Http
from weft.kinds.parts.packages import MOST_PACKAGE_BYTES, NEEDED, read_release
from weft.objects.errors import InvalidInput, NotFound

MAGIC = b"!<arch>\n"
MOST_CONTROL_BYTES = 1 << 20
UPLOAD_SECONDS = 120.0
_PIECE = 1 << 20


class Package(NamedTuple):
    path: Path
    name: str
    release: str
    architecture: str
    sha256: str
    size: int


def find_packages(folder: Path) -> list[Package]:
    """The packages of weft in ``folder``, which are all of one release. Raises InvalidInput."""
    hint = "give the folder in which weft-client, weft-agent and weft-server of one release are"
    if not folder.is_dir():
        raise InvalidInput(f"--to {folder}: no such folder", field="--to", hint=hint)
    found = [read_package(path) for path in sorted(folder.glob("weft-*.deb"))]
    found = [one for one in found if one.name in {name for needed in NEEDED.values() for name in needed}]
    releases = sorted({one.release for one in found}, key=read_release)
    if len(releases) > 1:
        raise InvalidInput(
            f"--to {folder}: it has packages of weft {' and '.join(releases)}",
            field="--to",
            hint="leave one release in it",
        )
    names = {one.name for one in found}
    if missing := sorted({name for needed in NEEDED.values() for name in needed} - names):
        raise InvalidInput(
            f"--to {folder}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            field="--to",
            hint=hint,
        )
    return found


def read_package(path: Path) -> Package:
    """Raises InvalidInput for a file that isn't a package, or can't be read."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > MOST_PACKAGE_BYTES:
                raise _refuse(path, "it is too large for a package of weft")
            control = _read_control(file, path)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise _refuse(path, (problem.strerror or str(problem)).lower()) from None
    fields = dict(re.findall(r"^([A-Za-z-]+): *(.*)$", control, re.MULTILINE))
    try:
        return Package(path, fields["Package"], fields["Version"], fields["Architecture"], digest, size)
    except KeyError as missing:
        raise _refuse(path, f"its control file has no {missing.args[0]}") from None


def _read_control(file: BinaryIO, path: Path) -> str:
    """The text of its control file: that is in the second member of an ar archive, a tar archive."""
    if file.read(len(MAGIC)) != MAGIC:
        raise _refuse(path, "it isn't a Debian package")
    while len(header := file.read(60)) == 60:
        name, length = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
        if not length.isdigit():
            break
        if not name.startswith("control.tar"):
            file.seek(int(length) + int(length) % 2, io.SEEK_CUR)
            continue
        if int(length) > MOST_CONTROL_BYTES:
            break
        try:
            with tarfile.open(fileobj=io.BytesIO(file.read(int(length)))) as archive:
                for member in archive:
                    if member.name.removeprefix("./") == "control" and member.size <= MOST_CONTROL_BYTES:
                        text = archive.extractfile(member)
                        return text.read().decode(errors="replace") if text is not None else ""
        except (tarfile.TarError, EOFError, OSError):
            pass
        break
    raise _refuse(path, "its control file can't be read")


def upload(http: Http, packages: Iterable[Package]) -> int:
    """Upload those that the server lacks; how many bytes that were. Raises WeftError."""
    sent = 0
    for one in packages:
        place = f"/v1/packages/{one.sha256}"
        try:
            raise_problem(http.request("GET", place))
        except NotFound:
            raise_problem(
                http.request("PUT", place, FileBody(one.path, threading.Event()), timeout_seconds=UPLOAD_SECONDS)
            )
            sent += one.size
    return sent


def _refuse(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"{path}: {why}", field="--to", hint="make deb builds packages")

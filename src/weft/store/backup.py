"""A backup: everything a store holds at one revision, and a server's own files, in one file that knows if it is whole.

It is gzip of lines of JSON: a header, a line for each file, each row (of what the server keeps beside its store: functions'
events) and each object, lines for what was uploaded (functions' code, in base64), and an end that counts them and holds the SHA-256
of all lines before it. Any engine's backup fits any engine.
``zcat FILE | head`` shows it to a person.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from weft.contracts.durable_file import keep_file
from weft.contracts.store import Compacted, Store, revision_of
from weft.objects.errors import InUse, InvalidInput, NotFound

FORMAT = "weft-backup"
VERSION = 3
WITHOUT_ROWS, WITHOUT_UPLOADS = 2, 1  # versions of files that an older weft reads as well
_PAGE_ENTRIES = 500
_ATTEMPTS = 3
_PIECE_BYTES = 1_500_000  # of an upload, in one line
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_LINE_BYTES = 4_000_000  # a value of the largest size, escaped
_QUICKLY = 3  # gzip's level: JSON shrinks tenfold already, and a backup holds nobody up


class Header(msgspec.Struct, frozen=True, tag="header", tag_field="line"):
    """``cursor`` is the instant shown; ``taken_at`` its time, in unix seconds; ``weft`` the version that wrote it."""

    format: str
    version: int
    weft: str
    taken_at: float
    cursor: str

    @property
    def revision(self) -> int:
        return revision_of(self.cursor)


class _File(msgspec.Struct, frozen=True, tag="file", tag_field="line"):
    name: str
    text: str


class _Object(msgspec.Struct, frozen=True, tag="object", tag_field="line"):
    key: str
    value: str


class _Row(msgspec.Struct, frozen=True, tag="row", tag_field="line"):
    value: str


class _Upload(msgspec.Struct, frozen=True, tag="upload", tag_field="line"):
    """A piece of it; those of one follow each other, ``last`` is the last of them."""

    name: str
    data: bytes
    last: bool


class _End(msgspec.Struct, frozen=True, tag="end", tag_field="line"):
    objects: int
    files: int
    sha256: str
    uploads: int = 0
    rows: int = 0


_decode_header = msgspec.json.Decoder(Header).decode
_decode_line = msgspec.json.Decoder(_File | _Row | _Object | _Upload | _End).decode
_encode = msgspec.json.Encoder().encode


class Backup:
    """A backup file that was found whole. ``objects``, ``uploads`` and ``rows`` are how many it holds, ``files`` the server's own,
    by name."""

    def __init__(
        self, path: Path, header: Header, files: Mapping[str, str], objects: int, uploads: int = 0, rows: int = 0
    ) -> None:
        self.path, self.row_count = path, rows
        self.header = header
        self.files = files
        self.objects = objects
        self.uploads = uploads

    def entries(self) -> Iterator[tuple[str, bytes]]:
        """Key and value of every object, in order of keys; read from the file as they are asked for."""
        for line in _read_lines(self.path):
            if isinstance(line, _Object):
                yield line.key, line.value.encode()

    def rows(self) -> Iterator[bytes]:
        """Each row as it was given; read from the file as they are asked for."""
        for line in _read_lines(self.path):
            if isinstance(line, _Row):
                yield line.value.encode()

    def put_uploads(self, folder: Path) -> None:
        """Write what was uploaded into ``folder``, whole and durably, under the digests that are its names."""
        out, partial = None, folder / f".restore-{os.getpid()}"
        try:
            for line in _read_lines(self.path):
                if not isinstance(line, _Upload):
                    continue
                if out is None:
                    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                    out = partial.open("wb")
                out.write(line.data)
                if line.last:
                    out.close()
                    out = None
                    keep_file(partial, folder / line.name)
        finally:
            if out is not None:
                out.close()
            partial.unlink(missing_ok=True)


async def write_backup(
    path: Path,
    store: Store,
    read_files: Callable[[], Mapping[str, str]],
    *,
    weft: str,
    taken_at: float,
    uploads: Path | None = None,
    rows: Callable[[], Iterator[bytes]] = lambda: iter(()),
) -> Backup:
    """Write what ``store`` holds at one revision, what ``read_files`` gives after that instant, ``rows`` (JSON), and what the
    folder ``uploads`` has by digest, to ``path`` (mode 0600), while others write on.

    Every commit acknowledged before the call is in it. Raises InUse if ``path`` exists, InvalidInput without
    its folder, what the store raises, and OSError; then there is no file."""
    if os.path.lexists(path):  # noqa: ASYNC240 (one look, which a link to nothing has to meet as well)
        raise InUse(f"{path} exists already", hint="name another file, or remove that one")
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent}", field="path", hint="create it, or name another file")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                backup = await _write(partial, store, read_files, weft, taken_at, uploads, rows())
                break
            except Compacted:  # the store forgot the instant before all of it was read
                if attempt == _ATTEMPTS:
                    raise
        keep_file(partial, path)
    except OSError as problem:
        if str(problem.filename) == str(partial):
            problem.filename = str(path)  # as it was asked for
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    backup.path = path
    return backup


async def _write(
    partial: Path,
    store: Store,
    read_files: Callable[[], Mapping[str, str]],
    weft: str,
    taken_at: float,
    uploads: Path | None,
    rows: Iterator[bytes],
) -> Backup:
    digest, objects, uploaded, row_count = hashlib.sha256(), 0, 0, 0
    first = next(rows, None)
    has_uploads = uploads is not None and any(_list_uploads(uploads))
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as raw, gzip.GzipFile("", "wb", _QUICKLY, raw, mtime=0) as out:

        def write(line: Header | _File | _Row | _Object | _Upload | _End) -> None:
            data = _encode(line) + b"\n"
            digest.update(data)
            out.write(data)

        page = await store.list("", limit=_PAGE_ENTRIES)
        version = VERSION if first is not None else WITHOUT_ROWS if has_uploads else WITHOUT_UPLOADS
        header = Header(FORMAT, version, weft, taken_at, page.cursor)
        write(header)
        files = read_files()
        for name, text in files.items():
            write(_File(name, text))
        for row in itertools.chain([] if first is None else [first], rows):
            write(_Row(row.decode()))
            row_count += 1
        while True:
            for entry in page.entries:
                write(_Object(entry.key, entry.value.decode()))
            objects += len(page.entries)
            if page.next is None:
                break
            page = await store.list("", limit=_PAGE_ENTRIES, after=page.next)
        # After the objects: what they name was uploaded before them, and is kept for a while after.
        for upload in _list_uploads(uploads) if has_uploads and uploads is not None else ():
            with contextlib.suppress(FileNotFoundError):  # nothing has named it for an hour
                if _is_whole(upload):
                    for piece in _read_pieces(upload):
                        write(piece)
                    uploaded += 1
        write(_End(objects, len(files), digest.hexdigest(), uploaded, row_count))
    return Backup(partial, header, files, objects, uploaded, row_count)


def _list_uploads(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if _DIGEST.fullmatch(path.name)) if folder.is_dir() else []


def _is_whole(path: Path) -> bool:
    """Whether it still is what its digest says: what a disk has spoilt is no use to anybody."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest() == path.name


def _read_pieces(path: Path) -> Iterator[_Upload]:
    with path.open("rb") as source:
        piece = source.read(_PIECE_BYTES)
        while True:
            following = source.read(_PIECE_BYTES)
            yield _Upload(path.name, piece, not following)
            if not following:
                return
            piece = following


def read_backup(path: Path) -> Backup:
    """The backup at ``path``, read to its end and found whole. Raises NotFound, and InvalidInput for a file that is none,
    a damaged one, or one of a newer weft."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder", field="path", hint="name a file that weft server backup made")
    if not path.is_file():
        raise NotFound(f"backup {path} does not exist", hint="name a file that weft server backup made")
    files: dict[str, str] = {}
    objects = uploads = rows = 0
    lines = _read_lines(path)
    header = next(lines)
    assert isinstance(header, Header)
    for line in lines:
        match line:
            case _File():
                files[line.name] = line.text
            case _Object():
                objects += 1
            case _Row():
                rows += 1
            case _Upload():
                if not _DIGEST.fullmatch(line.name):
                    raise _damaged(path, "an upload is not named by a digest")
                uploads += line.last
            case _End() if (line.objects, line.files, line.uploads, line.rows) != (objects, len(files), uploads, rows):
                raise _damaged(path, f"it holds {objects} objects, but declares {line.objects}")
    return Backup(path, header, files, objects, uploads, rows)


def _read_lines(path: Path) -> Iterator[Header | _File | _Row | _Object | _Upload | _End]:
    """Every line in order; raises InvalidInput unless the last one is an end with the digest of all before it."""
    digest = hashlib.sha256()
    try:
        with gzip.open(path, "rb") as source:
            yield _read_header(path, first := source.readline(_LONGEST_LINE_BYTES))
            digest.update(first)
            while data := source.readline(_LONGEST_LINE_BYTES):
                line = _decode_line(data)
                if isinstance(line, _End):
                    if line.sha256 != digest.hexdigest() or source.read(1):
                        raise _damaged(path, "its checksum doesn't match")
                    yield line
                    return
                digest.update(data)
                yield line
    except (zlib.error, EOFError, gzip.BadGzipFile, msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise _damaged(path, str(problem)) from problem
    raise _damaged(path, "its end is missing")


def _read_header(path: Path, data: bytes) -> Header:
    try:
        header = _decode_header(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        header = None
    if header is None or header.format != FORMAT:
        raise InvalidInput(f"{path} is not a weft backup", hint="name a file that weft server backup made")
    if header.version > VERSION:
        raise InvalidInput(
            f"backup {path} was written by a newer weft ({header.weft})", hint=f"restore it with weft {header.weft}"
        )
    return header


def _damaged(path: Path, fact: str) -> InvalidInput:
    return InvalidInput(
        f"backup {path} is damaged or not a weft backup: {fact}", hint="nothing was changed; use another backup"
    )

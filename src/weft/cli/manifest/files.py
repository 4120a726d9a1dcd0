"""Finds and reads manifest files: FILE, DIR (its manifests in the order of their names) or ``-`` for standard input."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from weft.cli.manifest.document import Document, unreadable
from weft.objects.errors import InvalidInput, TooLarge

MAX_FILE_BYTES = 16 * 1024 * 1024
_TEXT_READERS = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
SUFFIXES = (*_TEXT_READERS, ".nix")


def read_documents(given: Iterable[str]) -> list[Document]:
    """The documents in the files, folders or standard input ``given``. Raises InvalidInput with the place."""
    documents: list[Document] = []
    for name in given:
        if name == "-":
            documents += read_text(_decode(sys.stdin.buffer.read(MAX_FILE_BYTES + 1), "<stdin>"), "<stdin>")
        elif Path(name).is_dir():
            files = sorted(path for path in Path(name).iterdir() if path.suffix in SUFFIXES and path.is_file())
            if not files:
                raise InvalidInput(
                    f"{name} contains no manifests",
                    reason="invalidManifest",
                    hint="manifests end in " + ", ".join(SUFFIXES),
                )
            for path in files:
                documents += read_file(path)
        else:
            documents += read_file(Path(name))
    return documents


def read_file(path: Path) -> list[Document]:
    """The documents in one file, read as its suffix says; without a known one as JSON or YAML."""
    file = str(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TooLarge(f"{file} has more than {MAX_FILE_BYTES // 2**20} MiB")
        if path.suffix == ".nix":
            return _load("nix")(path, file)
        text = _decode(path.read_bytes(), file)
    except FileNotFoundError:
        raise InvalidInput(f"{file}: no such file", reason="invalidManifest") from None
    except OSError as problem:
        raise InvalidInput(f"{file}: {(problem.strerror or str(problem)).lower()}", reason="invalidManifest") from None
    form = _TEXT_READERS.get(path.suffix)
    return _load(form)(text, file) if form else read_text(text, file)


def _load(form: str) -> Callable[[Any, str], list[Document]]:
    """The reader of one form; only what is read is loaded, since every command that makes something may read a file."""
    reader: Callable[[Any, str], list[Document]] = getattr(
        importlib.import_module(f"weft.cli.manifest.{form}_text"), f"read_{form}"
    )
    return reader


def read_text(text: str, file: str) -> list[Document]:
    """The documents in ``text`` of unknown format: JSON if it begins like it, else YAML."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _load("json")(text, file)
        except InvalidInput:
            if not text.lstrip().startswith("{"):
                raise
            try:
                return _load("yaml")(text, file)  # YAML's own {a: b}
            except InvalidInput:
                pass
            raise
    return _load("yaml")(text, file)


def _decode(data: bytes, file: str) -> str:
    if len(data) > MAX_FILE_BYTES:
        raise TooLarge(f"{file} has more than {MAX_FILE_BYTES // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        column = problem.start - (data.rfind(b"\n", 0, problem.start) + 1) + 1
        raise unreadable(file, (line, column), "not text in UTF-8") from None

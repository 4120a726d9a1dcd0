"""A function's code, from a folder or a zip here to the server: packed the same each time, sent only if it isn't there yet. A
model's file goes the same way."""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from weft.cli.manifest.check import open_lists, place
from weft.cli.manifest.document import Document
from weft.cli.session import Session
from weft.client.function_code import has_code, upload_code
from weft.kinds.parts.function_code import DIGEST
from weft.kinds.registry import find_kind
from weft.objects.code_archive import read_members, too_large, write_archive
from weft.objects.code_limits import MOST_BYTES
from weft.objects.errors import InvalidInput, WeftError
from weft.objects.model.onnx_file import check_onnx, too_large_model
from weft.objects.quantity import format_bytes


class Packed(msgspec.Struct, frozen=True):
    """Code, or a model's file, as it is sent. ``source`` is the path that was given."""

    sha256: str
    data: bytes
    source: str
    files: int
    sort: Literal["code", "onnx"] = "code"


def pack(given: str, beside: Path | None = None) -> Packed:
    """The folder or zip at ``given``, relative to the folder ``beside`` if it is given. Raises InvalidInput, TooLarge."""
    path = (beside or Path()) / Path(given).expanduser()
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            out = io.BytesIO()
            files = write_archive(path, out)
            data = out.getvalue()
        elif stat.S_ISREG(mode):
            with path.open("rb") as source:
                data = source.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise too_large(path.stat().st_size)
            files = sum(not member.folder for member in read_members(io.BytesIO(data), len(data)))
        else:
            raise InvalidInput(f"{given} is neither a folder nor a zip file", field="spec.code")
    except OSError as problem:
        why = (problem.strerror or str(problem)).lower()
        hint = "give a folder, or a zip file of one"
        if given.startswith("/nix/store/"):
            hint = 'in nix, a path without quotes names a copy in the store, which doesn\'t exist here: write code = "./folder"'
        raise InvalidInput(f"code {given}: {why}", field="spec.code", hint=hint) from None
    return Packed(hashlib.sha256(data).hexdigest(), data, given, files)


def pack_model(given: str, beside: Path | None = None) -> Packed:
    """The ONNX file at ``given``, relative to the folder ``beside`` if it is given. Raises InvalidInput, TooLarge."""
    path = (beside or Path()) / Path(given).expanduser()
    try:
        if not path.is_file():
            why = "is not a file" if path.exists() else "no such file or directory"
            raise InvalidInput(f"model {given}: {why}", field="spec.file", hint="give an ONNX file")
        if path.stat().st_size > MOST_BYTES:
            raise too_large_model(path.stat().st_size)
        data = path.read_bytes()
    except OSError as problem:
        why = (problem.strerror or str(problem)).lower()
        raise InvalidInput(f"model {given}: {why}", field="spec.file", hint="give an ONNX file") from None
    check_onnx(data)
    return Packed(hashlib.sha256(data).hexdigest(), data, given, 1, "onnx")


def bring(session: Session, packed: Packed) -> None:
    """Upload it unless the server has it, and report that."""
    began = session.clock.elapsed()
    there = has_code(session.client, packed.sha256, packed.sort)
    if not there:
        upload_code(session.client, packed.sha256, packed.data, packed.sort)
    if session.output != "json":
        files = f"{packed.files} file{'s' * (packed.files != 1)}, " if packed.sort == "code" else ""
        did = "is already uploaded" if there else f"uploaded in {session.clock.elapsed() - began:.1f} s"
        word = "code" if packed.sort == "code" else "file"
        session.notify(f"{word}  {packed.source}: {files}{format_bytes(len(packed.data))}, {did}")


def pack_documents(documents: Iterable[Document]) -> list[Packed]:
    """Pack the code that functions, and the files that models among ``documents`` name by a path, relative to their file, and put
    its digest there. Raises InvalidInput at that place."""
    found: list[Packed] = []
    for document in open_lists(documents):
        sort, spec = _uploading_spec(document)
        word = "file" if sort == "onnx" else "code"
        if spec is not None and is_path(spec.get(word)):
            beside = Path(document.file).parent if document.file != "<stdin>" else Path()
            try:
                packed = pack_model(spec[word], beside) if sort == "onnx" else pack(spec[word], beside)
            except WeftError as problem:
                raise place(document, ("spec", word), problem) from None
            put(spec, packed)
            found.append(packed)
    return found


def put(spec: dict[str, Any], packed: Packed) -> None:
    """Name the upload in ``spec``."""
    if packed.sort == "onnx":
        spec["file"] = packed.sha256
    else:
        spec["code"], spec["code_size"] = packed.sha256, len(packed.data)


def is_path(code: Any) -> bool:
    """Whether a spec's code or file is a file of this machine: it is anything but a digest."""
    return isinstance(code, str) and bool(code) and not DIGEST.fullmatch(code)


def _uploading_spec(document: Document) -> tuple[str, dict[str, Any] | None]:
    """The sort of a document's upload, and its spec; None for a kind without uploads."""
    whole = document.value
    kind = whole.get("kind") if isinstance(whole, dict) else None
    try:
        admission = find_kind(kind).admission if isinstance(kind, str) else None
    except WeftError:
        admission = None  # reading the manifest reports it
    if admission is None or admission.uploads is None:
        return "", None
    spec = whole.get("spec")
    return admission.upload_sort, spec if isinstance(spec, dict) else None

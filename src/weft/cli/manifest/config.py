"""``--config FILE``: a whole object, or just its spec, for a command that knows the kind already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weft.cli.manifest.check import find_wrong_keys, place, raise_all
from weft.cli.manifest.document import Document
from weft.cli.manifest.files import read_documents
from weft.kinds.record import Kind
from weft.kinds.registry import find_kind
from weft.objects.errors import InvalidInput, WeftError


def read_config(file: str, kind: Kind) -> Document:
    """The content of ``file`` as an object of ``kind``, with at least a ``spec``.

    Raises InvalidInput with file, line and column for anything but an object of that kind; the spec is not checked."""
    if Path(file).is_dir():
        raise InvalidInput(f"{file} is a folder; the command creates one object", hint=f"weft apply -f {file}")
    documents = read_documents([file])
    if len(documents) != 1:
        count = "nothing" if not documents else f"{len(documents)} documents"
        raise InvalidInput(f"{file} holds {count}; the command creates one object", hint=f"weft apply -f {file}")
    document = documents[0]
    if not isinstance(document.value, dict):
        raise place(document, (), InvalidInput("must be a mapping: an object or its spec"))
    if not {"kind", "spec"} & set(document.value):
        places = {("spec", *path): at for path, at in document.places.items()}
        return Document({"spec": document.value}, document.file, places)
    raise_all([*find_wrong_keys(document), *_find_wrong_values(document, kind)])
    return Document({**document.value, "spec": document.value.get("spec") or {}}, document.file, document.places)


def _find_wrong_values(document: Document, kind: Kind) -> list[WeftError]:
    problems: list[WeftError] = []
    whole: dict[str, Any] = document.value
    named = whole.get("kind", kind.name)
    try:
        if not isinstance(named, str) or find_kind(named).name != kind.name:
            raise InvalidInput(f"kind is {named}, but the command takes {kind.a_title}", field="kind")
    except WeftError as problem:
        problems.append(place(document, ("kind",), problem))
    shapes = (
        ("name", str, "text"),
        ("project", str, "text"),
        ("labels", dict, "a mapping"),
        ("spec", dict, "a mapping"),
    )
    for key, type_, words in shapes:
        if whole.get(key) is not None and not isinstance(whole[key], type_):
            problems.append(place(document, (key,), InvalidInput(f"{key} must be {words}", field=key)))
    labels = whole.get("labels")
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if not isinstance(value, str):
            wrong = InvalidInput(
                f"labels.{key}: the value must be text", field=f"labels.{key}", hint='put it in "quotes"'
            )
            problems.append(place(document, ("labels", key), wrong))
    return problems

"""Check documents and make manifests of them: what the server would refuse is refused here already, with its place in the file.

Pure. What the server sets (revision, status, …) is left out, so that the output of ``get -o yaml`` can be applied; its uid
and generation are kept: it is applied to that very object, if nobody changed it meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from weft.cli.manifest.document import Document, Path, split_path
from weft.kinds.record import Kind
from weft.kinds.registry import find_kind
from weft.objects.errors import InvalidInput, UnknownField, WeftError, error_from_dict
from weft.objects.identity import check_labels, check_name
from weft.objects.schema import find_problems, read_strict, suggest

WRITTEN = ("kind", "name", "project", "labels", "spec", "uid", "generation")
SERVER_SET = (
    *("owner", "revision", "schema", "created_at", "created_by", "actions", "marks", "status", "report"),
    *("conditions", "deleting_since", "finalizers", "trace"),
)
_LISTS = ("items", "cursor", "continue")


class WrittenManifest(msgspec.Struct, frozen=True):
    """One object as written: ``data`` is what to send, ``document`` where it came from."""

    kind: Kind
    data: dict[str, Any]
    document: Document

    @property
    def what(self) -> str:
        return f"{self.kind.name}/{self.data['name']}"

    @property
    def title(self) -> str:
        return f'{self.kind.title} "{self.data["name"]}"'


def read_manifests(documents: Iterable[Document], project: str | None = None) -> list[WrittenManifest]:
    """The manifests in ``documents``; lists and ``items`` are opened. ``project`` is for those that name none.

    Raises the first problem, with all of them in ``details["problems"]``."""
    manifests: list[WrittenManifest] = []
    problems: list[WeftError] = []
    for document in open_lists(documents):
        manifest, found = read_manifest(document, project)
        problems += found
        if manifest is not None:
            manifests.append(manifest)
    problems += _find_repeats(manifests)
    raise_all(problems)
    return manifests


def raise_all(problems: list[WeftError]) -> None:
    """Raise the first of ``problems``, if any, with all of them in its details."""
    if not problems:
        return
    first = problems[0]
    if len(problems) > 1:
        first.details = {**first.details, "problems": [problem.to_dict() for problem in problems]}
    raise first


def read_manifest(document: Document, project: str | None = None) -> tuple[WrittenManifest | None, list[WeftError]]:
    """The manifest a document is, and everything wrong with it; None when not even its kind and name can be read."""
    if not isinstance(document.value, dict):
        return None, [place(document, (), InvalidInput("a manifest must be a mapping with kind, name, spec"))]
    given = dict(document.value)
    problems = find_wrong_keys(document)
    try:
        if not isinstance(given.get("kind"), str):
            raise InvalidInput("kind is missing", field="kind", hint="write one, like kind: vm")
        kind = find_kind(given["kind"])
        check_name(given.get("name"))
        if given.get("project") is not None:
            check_name(given["project"], "project")
    except WeftError as problem:
        return None, [*problems, place(document, (problem.field or "name",), problem)]
    data: dict[str, Any] = {"kind": kind.name, "name": given["name"]}
    manifest = WrittenManifest(kind, data, document)
    if kind.scope == "project" and (given.get("project") or project):
        data["project"] = given.get("project") or project
    if "labels" in given and given["labels"] is not None:
        data["labels"] = given["labels"]
        problems += [locate(manifest, problem) for problem in _check_labels(given["labels"])]
    for part, type_ in (("uid", str), ("generation", int)):
        if given.get(part) is not None:
            data[part] = given[part]
            if type(given[part]) is not type_:
                problems.append(locate(manifest, InvalidInput(f"{part} is not as the server returned it", field=part)))
    spec = given.get("spec")
    data["spec"] = {} if spec is None else spec
    problems += [locate(manifest, problem) for problem in check_spec(kind, data["spec"])]
    return manifest, problems


def check_spec(kind: Kind, spec: Any) -> list[WeftError]:
    """Everything wrong with ``spec`` that can be known without asking the server."""
    _, problems = find_problems(spec, kind.spec)
    if problems:
        return problems
    try:
        read = read_strict(spec, kind.spec)
        if kind.admission.check is not None:
            kind.admission.check(read)
    except WeftError as problem:
        return [problem]
    return []


def locate(manifest: WrittenManifest, problem: WeftError) -> WeftError:
    """``problem`` with the place in the file and the object's name in front, and a hint where the fields are listed."""
    hint = problem.hint
    if isinstance(problem, UnknownField) and (problem.field or "").startswith("spec"):
        listed = f"weft schema {manifest.kind.name}.spec lists them"
        hint = f"{hint}   {listed}" if (hint or "").startswith("did you mean") else listed
    path = split_path(problem.field or "")
    return place(manifest.document, path, reword(problem, f"{manifest.title}: {problem.message}", hint))


def reword(problem: WeftError, message: str, hint: str | None, **details: Any) -> WeftError:
    """The same problem in other words."""
    return type(problem)(
        message, reason=problem.token, field=problem.field, hint=hint, details={**problem.details, **details}
    )


def locate_refusal(error: WeftError, manifests: list[WrittenManifest]) -> WeftError:
    """The server's refusal of an apply, with each of its problems at its place in the files."""
    listed = error.details.get("problems") or []
    found: list[WeftError] = []
    for entry in listed:
        index = entry.get("index")
        problem = error_from_dict(entry)
        if isinstance(index, int) and 0 <= index < len(manifests):
            found.append(locate(manifests[index], problem))
        else:
            found.append(problem)
    if not found:
        return error
    first = found[0]
    first.details = {**error.details, **first.details, "problems": [problem.to_dict() for problem in found]}
    return first


def open_lists(documents: Iterable[Document]) -> Iterator[Document]:
    """``documents`` one by one: those that are lists, or have ``items``, are opened."""
    for document in documents:
        value = document.value
        if isinstance(value, list):
            yield from open_lists(document.below(index) for index in range(len(value)))
        elif isinstance(value, dict) and isinstance(value.get("items"), list) and set(value) <= set(_LISTS):
            yield from open_lists([document.below("items")])
        else:
            yield document


def _check_labels(labels: Any) -> list[WeftError]:
    if not isinstance(labels, dict):
        return [InvalidInput("labels must be a mapping", field="labels")]
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            return [
                InvalidInput(f"labels.{key}: the value must be text", field=f"labels.{key}", hint='put it in "quotes"')
            ]
    try:
        check_labels(labels)
    except WeftError as problem:
        return [problem]
    return []


def find_wrong_keys(document: Document) -> list[WeftError]:
    """An error for every top-level key that manifests don't have."""
    return [_refuse_key(document, key) for key in document.value if key not in WRITTEN and key not in SERVER_SET]


def _refuse_key(document: Document, key: Any) -> WeftError:
    meant = suggest(str(key), list(WRITTEN))
    if key == "apiVersion":
        said = "this is a manifest of Kubernetes: apiVersion is not a field of weft's"
        hint = "weft schema KIND lists the fields of a kind, like container, deployment and service"
        return place(document, (key,), UnknownField(said, field=key, hint=hint))
    hint = f"did you mean {meant}?" if meant else "a manifest has " + ", ".join(WRITTEN)
    return place(document, (key,), UnknownField(f"{key} is not a field of a manifest", field=str(key), hint=hint))


def _find_repeats(manifests: list[WrittenManifest]) -> list[WeftError]:
    first: dict[tuple[str, str, str], WrittenManifest] = {}
    problems: list[WeftError] = []
    for manifest in manifests:
        key = (manifest.kind.name, str(manifest.data.get("project", "")), manifest.data["name"])
        if key in first:
            other = first[key].document.locate()
            problems.append(locate(manifest, InvalidInput(f"is given twice, first at {other}", field="name")))
        first.setdefault(key, manifest)
    return problems


def place(document: Document, path: Path, problem: WeftError) -> WeftError:
    """``problem`` with ``file:line:column`` of ``path`` in front, and in its details."""
    where = document.locate(path)
    file, *at = where.rsplit(":", 2) if where != document.file else [where]
    details: dict[str, Any] = {"file": file}
    if len(at) == 2:
        details |= {"line": int(at[0]), "column": int(at[1])}
    return reword(problem, f"{where}: {problem.message}", problem.hint, **details)

"""The top level of a manifest, read strictly. Pure.

A manifest may have the server's own fields (status, …), which are ignored, so that an object that was read can be sent back. Three
are preconditions: ``uid`` means "this object, not a later one of its name", ``generation`` "only if nobody changed the spec since",
and ``revision``, which counts in a PUT only, "only if nothing changed, the status neither".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from weft.kinds.record import Kind
from weft.kinds.registry import find_kind
from weft.objects.errors import InvalidInput, UnknownField
from weft.objects.identity import check_labels, check_name
from weft.objects.schema import suggest
from weft.objects.unknown_fields import field_names

FIELDS = ("kind", "name", "project", "labels", "spec", "uid", "generation")
PASSED_OVER = frozenset(
    (
        "owner",
        "revision",
        "schema",
        "created_at",
        "created_by",
        "actions",
        "marks",
        "status",
        "report",
        "conditions",
        "deleting_since",
        "finalizers",
        "trace",
    )
)


_KNOWN = PASSED_OVER.union(FIELDS)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    name: str
    project: str | None
    labels: dict[str, str] | None  # None: the manifest doesn't mention labels
    spec: dict[str, Any]  # as written
    marks: dict[str, Any] | None = (
        None  # of a new object that a verb makes; None: people, or weft itself, wrote the manifest
    )
    uid: str | None = None
    generation: int | None = None
    revision: int | None = None  # for a PUT


def read_manifest(
    raw: Any,
    *,
    kind: Kind | None = None,
    project: str | None = None,
    name: str | None = None,
    by_verb: bool = False,
) -> Manifest:
    """The manifest in ``raw``. Fields that the URL has already (``kind``, ``project``, ``name``) are optional and must agree with
    it. ``by_verb``: no person wrote it, and its marks count. Raises UnknownField, InvalidInput, NotFound for an unknown kind."""
    if not isinstance(raw, dict):
        raise InvalidInput("a manifest must be a set of fields", hint="like kind: vm, name: web, spec: …")
    found_kind = kind if kind is not None and "kind" not in raw else _read_kind(raw, kind)
    if not raw.keys() <= _KNOWN:
        _refuse_unknown(raw, found_kind)
    return Manifest(
        kind=found_kind,
        name=_read_name(raw, found_kind, name),
        project=_read_project(raw, found_kind, project),
        labels=_read_labels(raw["labels"]) if "labels" in raw else None,
        spec=_read_spec(raw.get("spec")),
        marks=raw.get("marks", {}) if by_verb else None,
        uid=_read_uid(raw["uid"]) if "uid" in raw else None,
        generation=_read_number(raw, "generation") if "generation" in raw else None,
        revision=_read_number(raw, "revision") if "revision" in raw else None,
    )


def _read_kind(raw: Mapping[str, Any], expected: Kind | None) -> Kind:
    word = raw.get("kind")
    if word is None and expected is not None:
        return expected
    if not isinstance(word, str) or not word:
        raise InvalidInput("kind is missing", field="kind", hint="give one, like kind: vm")
    found = find_kind(word)
    if expected is not None and found.name != expected.name:
        raise InvalidInput(
            f"kind is {found.name}, but this is the path of {expected.plural}",
            field="kind",
            hint=f"write kind: {expected.name}",
        )
    return found


def _refuse_unknown(raw: Mapping[str, Any], kind: Kind) -> None:
    in_spec = field_names(kind.spec)
    for key in raw:
        if key in _KNOWN:
            continue
        meant = suggest(str(key), list(FIELDS))
        if key in in_spec:
            hint = f"it belongs under spec: spec.{key}"
        else:
            hint = f"did you mean {meant}?" if meant else "fields: " + ", ".join(FIELDS)
        raise UnknownField(f"{str(key)[:80]} is not a field", field=str(key)[:80], hint=hint)


def _read_name(raw: Mapping[str, Any], kind: Kind, expected: str | None) -> str:
    name = check_name(raw.get("name", expected))
    if expected is not None and name != expected:
        raise InvalidInput(
            f"name is {name}, but the URL has {expected}", field="name", hint=f"{kind.a_title}'s name never changes"
        )
    return name


def _read_project(raw: Mapping[str, Any], kind: Kind, expected: str | None) -> str | None:
    project = raw.get("project")
    if kind.scope == "fabric":
        if project is not None:
            raise InvalidInput(
                f"{kind.a_title} belongs to no project", field="project", hint="leave the field project out"
            )
        return None
    if project is None:
        project = expected or "default"
    check_name(project, "project")
    if expected is not None and project != expected:
        raise InvalidInput(f"project is {project}, but the URL has {expected}", field="project")
    return str(project)


def _read_labels(raw: Any) -> dict[str, str] | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise InvalidInput("labels must be a set of key: value", field="labels", hint="like labels: {tier: db}")
    for key, value in raw.items():
        if not isinstance(value, str):
            at = f"labels.{str(key)[:80]}"
            raise InvalidInput(f"{at} must be text", field=at, hint=f'put it in quotes: "{str(value)[:40]}"')
    if len(raw) > 64:
        raise InvalidInput(f"labels: {len(raw)} are too many", field="labels", hint="at most 64")
    check_labels(raw)
    return dict(raw)


def _read_spec(raw: Any) -> dict[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InvalidInput("spec must be a set of fields", field="spec")
    return raw


def _read_uid(raw: Any) -> str | None:
    if raw is not None and not isinstance(raw, str):
        raise InvalidInput("uid must be text", field="uid", hint="leave it out, or send the one that was read")
    return raw or None


def _read_number(raw: Mapping[str, Any], field: str) -> int | None:
    found = raw.get(field)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int):
        raise InvalidInput(f"{field} must be a whole number", field=field)
    return found

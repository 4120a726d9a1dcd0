"""The API's description (OpenAPI 3.1), made from the kinds, the other routes, and their structs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from weft import __version__
from weft.api.field_texts import describe_struct, find_structs
from weft.api.object.bulk import MOST_OBJECTS, RESULTS, make_objects_schema
from weft.api.route import JSON, SCHEMAS, Route, Shape, list_names, refer_to
from weft.contracts.journal import Event
from weft.kinds.record import Kind, Verb
from weft.kinds.registry import KINDS
from weft.objects.envelope import Condition, Envelope
from weft.objects.identity import Ref
from weft.objects.schema import describe_fields
from weft.objects.spec_change import FieldChange

_ANY_OBJECT = {"type": "object"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_HUMAN = {
    "size": {"type": ["integer", "string"], "description": "bytes, or a size like 512M, 4G"},
    "cores": {"type": ["number", "string"], "description": "cores, or thousandths like 500m"},
    "time": {"type": ["number", "string"], "description": "seconds since 1970, or RFC 3339 like 2026-12-24T22:00:00Z"},
    "duration": {"type": ["number", "string"], "description": "seconds, or a duration like 30s, 5m"},
}


def describe_api(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document; ``routes`` are those that no kind has."""
    paths: dict[str, Any] = {}
    for kind in KINDS:
        paths |= _paths_of(kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "weft", "version": __version__, "license": {"name": "Apache-2.0"}},
        "security": [{"token": []}, {"certificate": []}],
        "paths": paths | _paths_by_hand(routes),
        "components": {
            "schemas": dict(sorted(_schemas(routes).items())),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
            "responses": {
                "Problem": {
                    "description": "What went wrong, and what to do about it",
                    "content": {"application/problem+json": {"schema": refer_to("Problem")}},
                }
            },
        },
    }


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    types: list[Any] = [Ref, Condition, FieldChange, Event]
    types += [struct for route in routes for struct in _structs_of(route)]
    for kind in KINDS:
        types += [kind.spec, kind.status, *filter(None, (kind.actions, kind.marks, kind.report))]
        types += [verb.input for verb in kind.verbs if verb.input is not None]
    _, schemas = msgspec.json.schema_components(types, ref_template=SCHEMAS + "{name}")
    _write_bounds_as_integers(schemas)
    for struct in find_structs(types):
        _describe(struct, schemas[struct.__name__])
    for kind in KINDS:
        _write_quantities(kind, schemas)
        schemas[_title(kind)] = _object_schema(kind)
        if kind.access.writer == "people":
            schemas[f"{_title(kind)}Manifest"] = _manifest_schema(kind)
    schemas["Problem"] = _problem_schema()
    return schemas


def _write_bounds_as_integers(schema: Any) -> None:
    """Write 0.0 as 0: ``typing`` takes ``Meta(ge=0)`` and ``Meta(ge=0.0)`` for one and remembers whichever it met last."""
    if isinstance(schema, list):
        for part in schema:
            _write_bounds_as_integers(part)
    elif isinstance(schema, dict):
        for name, value in schema.items():
            if name in _BOUNDS and isinstance(value, float) and value.is_integer():
                schema[name] = int(value)
            else:
                _write_bounds_as_integers(value)


def _write_quantities(kind: Kind, schemas: dict[str, Any]) -> None:
    """Describe how people may write quantities."""
    properties = schemas[kind.spec.__name__].get("properties", {})
    for doc in describe_fields(kind.spec):
        name = doc.path.removeprefix("spec.")
        if doc.type in _HUMAN and name in properties:
            human = _HUMAN[doc.type]
            described = f"{properties[name].get('description', '')} ({human['description']})".strip()
            known = dict(properties[name])
            if {"type": "null"} in known.pop("anyOf", []):
                human = {**human, "type": [*human["type"], "null"]}
            properties[name] = {**known, **human, "description": described}
        if name in properties:
            properties[name]["x-change"] = doc.change


def _object_schema(kind: Kind) -> dict[str, Any]:
    further = {part: getattr(kind, part) for part in ("actions", "marks", "report")}
    schema = {
        "type": "object",
        "title": kind.title,
        "description": kind.summary,
        "required": ["kind", "name", "uid", "revision", "generation", "spec", "status"],
        "properties": {
            "kind": {"const": kind.name},
            "name": {"type": "string"},
            "uid": {"type": "string"},
            "project": {"type": ["string", "null"]},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "owner": {"anyOf": [refer_to("Ref"), {"type": "null"}]},
            "revision": {"type": "integer"},
            "generation": {"type": "integer"},
            "schema": {"type": "integer"},
            "created_at": {"type": "number"},
            "created_by": {"type": "string"},
            "spec": refer_to(kind.spec.__name__),
            "status": refer_to(kind.status.__name__),
            **{part: refer_to(type_.__name__) for part, type_ in further.items() if type_ is not None},
            "conditions": {"type": "array", "items": refer_to("Condition")},
            "deleting_since": {"type": ["number", "null"]},
            "finalizers": {"type": "array", "items": {"type": "string"}},
            "trace": {"type": "string"},
        },
    }
    _describe(Envelope, schema)
    return schema


def _describe(struct: type, schema: dict[str, Any]) -> None:
    """Give the properties of ``schema`` the texts of the struct's fields; an array has none."""
    properties = schema.get("properties", {})
    for name, text in describe_struct(struct).items():
        if name in properties:
            properties[name].setdefault("description", text)


def _manifest_schema(kind: Kind) -> dict[str, Any]:
    project = {"project": {"type": "string"}} if kind.scope == "project" else {}
    return {
        "type": "object",
        "description": f"The spec of {kind.a_title}",
        "required": ["name", "spec"],
        "properties": {
            "kind": {"const": kind.name},
            "name": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
            **project,
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "spec": refer_to(kind.spec.__name__),
            "uid": {"type": "string", "description": "Only the object with this uid, not a later one of the same name"},
            "generation": {"type": "integer", "description": "Only if the object still has this generation"},
            "revision": {
                "type": "integer",
                "description": "In a PUT without generation: only if the object still has this revision; status changes it, too",
            },
        },
    }


def _problem_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["reason", "message", "status", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "reason": {"type": "string", "description": "Stable; programs may match on it"},
            "message": {"type": "string"},
            "field": {"type": "string", "description": "Path of the field that is wrong"},
            "hint": {"type": "string", "description": "What to do next"},
            "details": {"type": "object"},
            "retry_after_seconds": {"type": "number"},
            "request_id": {"type": "string"},
        },
    }


def _paths_of(kind: Kind) -> dict[str, Any]:
    title, in_project = _title(kind), kind.scope == "project"
    base = f"/v1/projects/{{project}}/{kind.plural}" if in_project else f"/v1/{kind.plural}"
    where = [_path_parameter("project")] if in_project else []
    named = [*where, _path_parameter("name")]
    whole, manifest = refer_to(title), refer_to(f"{title}Manifest")
    collection: dict[str, Any] = {"get": _list_operation(kind, where)}
    none = _header("If-None-Match")
    one: dict[str, Any] = {"get": _operation(f"Get one {kind.title}", [*named, none], whole)}
    one["get"]["responses"]["304"] = {"description": "The object still matches If-None-Match"}
    paths: dict[str, Any] = {base: collection, f"{base}/{{name}}": one}
    if in_project:
        paths[f"/v1/{kind.plural}"] = {"get": _list_operation(kind, [], " of all projects")}
    if kind.access.writer == "people":
        dry, key, match = _query("dry_run"), _header("Idempotency-Key"), _header("If-Match")
        collection["post"] = _operation(f"Create {kind.a_title}", [*where, dry, key], whole, manifest, "201")
        one["put"] = _operation(f"Create or change {kind.a_title}", [*named, dry, key, match, none], whole, manifest)
        patch = _operation(
            f"Change {kind.a_title} (JSON merge patch)", [*named, dry, key, match], whole, {"type": "object"}
        )
        one["patch"] = patch
        one["delete"] = _operation(
            f"Delete {kind.a_title}", [*named, _query("uid"), *_force(kind), key, match], _gone(title)
        )
        one["delete"]["responses"]["202"] = {
            **_answered(whole),
            "description": "The deletion has begun: finalizers still hold the object",
        }
        paths[f"{base}:batch"] = {
            "post": _operation(
                f"Create up to {MOST_OBJECTS} {kind.plural}", [*where, key], RESULTS, make_objects_schema(manifest)
            )
        }
    for verb in kind.verbs:
        paths[f"{base}/{{name}}:{verb.name}"] = {"post": _verb_operation(kind, verb, named)}
    return paths


def _verb_operation(kind: Kind, verb: Verb, named: list[dict[str, Any]]) -> dict[str, Any]:
    answer = refer_to(_title(kind))
    if verb.make is not None:
        answer = {"type": "object", "description": "The object that the verb made"}
    if verb.stream:
        names = ("ticket", "address", "server_name")
        answer = {"type": "object", "required": list(names), "properties": {n: {"type": "string"} for n in names}}
    given = refer_to(verb.input.__name__) if verb.input is not None else None
    return _operation(f"{verb.summary} ({verb.name})", [*named, _header("If-Match")], answer, given)


def _list_operation(kind: Kind, where: list[dict[str, Any]], which: str = "") -> dict[str, Any]:
    shared = ["shared"] if kind.is_shareable else []
    words = (*kind.selectors, *shared, "limit", "continue", "watch", "cursor")
    page = {
        "type": "object",
        "required": ["items", "cursor"],
        "properties": {
            "items": {"type": "array", "items": refer_to(_title(kind))},
            "cursor": {"type": "string", "description": "A watch from here misses nothing"},
            "continue": {"type": ["string", "null"], "description": "The next page of the same instant"},
        },
    }
    summary = f"List {kind.plural}{which}, or with watch=1&cursor=… follow them as NDJSON"
    return _operation(summary, [*where, *(_query(word) for word in words)], page)


def _paths_by_hand(routes: Sequence[Route]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in sorted(routes, key=lambda route: route.path):
        paths.setdefault(route.path, {})[route.method.lower()] = _describe_route(route)
    return paths


def _describe_route(route: Route) -> dict[str, Any]:
    names = [_path_parameter(name) for name in list_names(route.path)]
    parameters = [*names, *(_query(word) for word in route.query)]
    body = None if route.takes is None else _schema_of(route.takes)
    return _operation(
        route.summary,
        parameters,
        _ANY_OBJECT if route.answers is None else _schema_of(route.answers),
        body,
        route.status,
        media_type=route.media_type,
    )


def _schema_of(shape: Shape) -> dict[str, Any]:
    if isinstance(shape, tuple):
        return {"anyOf": [refer_to(struct) for struct in shape]}
    return refer_to(shape) if isinstance(shape, type) else dict(shape)


def _structs_of(route: Route) -> Iterator[type[msgspec.Struct]]:
    yield from route.names
    for shape in (route.takes, route.answers):
        if isinstance(shape, type):
            yield shape
        elif isinstance(shape, tuple):
            yield from shape


def _operation(
    summary: str,
    parameters: list[dict[str, Any]],
    answer: dict[str, Any],
    body: dict[str, Any] | None = None,
    status: str = "200",
    media_type: str = JSON,
) -> dict[str, Any]:
    out: dict[str, Any] = {"summary": summary}
    if parameters:
        out["parameters"] = parameters
    if body is not None:
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    out["responses"] = {
        status: _answered(answer, media_type),
        "default": {"$ref": "#/components/responses/Problem"},
    }
    return out


def _answered(answer: dict[str, Any], media_type: str = JSON) -> dict[str, Any]:
    return {"description": "Done", "content": {media_type: {"schema": answer}}}


def _gone(title: str) -> dict[str, Any]:
    """The last state of a deleted object; the answer to a repeated request has only the name."""
    repeated = {"type": "object", "properties": {"uid": {"const": ""}, "name": {"type": "string"}}}
    return {"anyOf": [refer_to(title), repeated]}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _force(kind: Kind) -> list[dict[str, Any]]:
    return [_query("force")] if kind.lifetime.runs_workloads else []


def _query(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "string"}}


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {"type": "string"}}


def _title(kind: Kind) -> str:
    return kind.name.capitalize()

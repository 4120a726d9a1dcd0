"""The API's description (OpenAPI 3.1), made from the kinds and their structs; kept as docs/reference/openapi.json.

``python -m weft.api.openapi`` prints it. Pure.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from weft import __version__
from weft.api.accounting import AccountingAnswer
from weft.api.field_texts import describe_struct, find_structs
from weft.api.node.usage import UsageAnswer
from weft.api.object.bulk import MOST_OBJECTS
from weft.contracts.journal import Event
from weft.kinds.allocation import AllocatedNic
from weft.kinds.record import Kind, Verb
from weft.kinds.registry import KINDS
from weft.objects.envelope import Condition, Envelope
from weft.objects.identity import Ref
from weft.objects.schema import describe_fields
from weft.objects.spec_change import FieldChange
from weft.protocol.login import LoginAnswer, LoginBegun, LoginInput, PasswordInput, WhoAmI
from weft.protocol.report import (
    EgressEndpointInput,
    JoinAnswer,
    JoinInput,
    OpenedSecrets,
    RenewInput,
    ReportAnswer,
    ReportBody,
    SecretsInput,
)
from weft.telemetry.journal import Record
from weft.trust.audit_chain import AuditRecord, AuditVerdict

_PREFIX = "#/components/schemas/"
_HUMAN = {
    "size": {"type": ["integer", "string"], "description": "bytes, or a size like 512M, 4G"},
    "cores": {"type": ["number", "string"], "description": "cores, or thousandths like 500m"},
    "time": {"type": ["number", "string"], "description": "seconds since 1970, or RFC 3339 like 2026-12-24T22:00:00Z"},
    "duration": {"type": ["number", "string"], "description": "seconds, or a duration like 30s, 5m"},
}


def describe_api() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, Any] = {}
    for kind in KINDS:
        paths |= _paths_of(kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "weft", "version": __version__, "license": {"name": "Apache-2.0"}},
        "security": [{"token": []}, {"certificate": []}],
        "paths": paths | dict(sorted(_paths_by_hand().items())),
        "components": {
            "schemas": dict(sorted(_schemas().items())),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
            "responses": {
                "Problem": {
                    "description": "What went wrong, and what to do about it",
                    "content": {"application/problem+json": {"schema": _ref("Problem")}},
                }
            },
        },
    }


def _schemas() -> dict[str, Any]:
    types: list[Any] = [Ref, Condition, FieldChange, Record, Event, JoinInput, JoinAnswer, RenewInput, UsageAnswer]
    types += [LoginInput, LoginBegun, LoginAnswer, PasswordInput, WhoAmI]
    types += [AuditRecord, AuditVerdict]
    types.append(AccountingAnswer)
    types += [ReportBody, ReportAnswer, AllocatedNic, EgressEndpointInput, SecretsInput, OpenedSecrets]
    for kind in KINDS:
        types += [kind.spec, kind.status, *([kind.report] if kind.report else [])]
        types += [verb.input for verb in kind.verbs if verb.input is not None]
    _, schemas = msgspec.json.schema_components(types, ref_template=_PREFIX + "{name}")
    for struct in find_structs(types):
        _describe(struct, schemas[struct.__name__])
    for kind in KINDS:
        _write_quantities(kind, schemas)
        schemas[_title(kind)] = _object_schema(kind)
        if kind.access.writer == "people":
            schemas[f"{_title(kind)}Manifest"] = _manifest_schema(kind)
    schemas["Problem"] = _problem_schema()
    return schemas


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
    report = {"report": _ref(kind.report.__name__)} if kind.report else {}
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
            "owner": {"anyOf": [_ref("Ref"), {"type": "null"}]},
            "revision": {"type": "integer"},
            "generation": {"type": "integer"},
            "schema": {"type": "integer"},
            "created_at": {"type": "number"},
            "created_by": {"type": "string"},
            "spec": _ref(kind.spec.__name__),
            "status": _ref(kind.status.__name__),
            **report,
            "conditions": {"type": "array", "items": _ref("Condition")},
            "deleting_since": {"type": ["number", "null"]},
            "finalizers": {"type": "array", "items": {"type": "string"}},
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
            "spec": _ref(kind.spec.__name__),
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
    whole, manifest = _ref(title), _ref(f"{title}Manifest")
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
                f"Create up to {MOST_OBJECTS} {kind.plural}", [*where, key], _results(), _objects(manifest)
            )
        }
    for verb in kind.verbs:
        paths[f"{base}/{{name}}:{verb.name}"] = {"post": _verb_operation(kind, verb, named)}
    return paths


def _verb_operation(kind: Kind, verb: Verb, named: list[dict[str, Any]]) -> dict[str, Any]:
    answer = _ref(_title(kind))
    if verb.make is not None:
        answer = {"type": "object", "description": "The object that the verb made"}
    if verb.stream:
        names = ("ticket", "address", "server_name")
        answer = {"type": "object", "required": list(names), "properties": {n: {"type": "string"} for n in names}}
    given = _ref(verb.input.__name__) if verb.input is not None else None
    return _operation(f"{verb.summary} ({verb.name})", [*named, _header("If-Match")], answer, given)


def _list_operation(kind: Kind, where: list[dict[str, Any]], which: str = "") -> dict[str, Any]:
    shared = ["shared"] if kind.is_shareable else []
    words = (*kind.selectors, *shared, "limit", "continue", "watch", "cursor")
    page = {
        "type": "object",
        "required": ["items", "cursor"],
        "properties": {
            "items": {"type": "array", "items": _ref(_title(kind))},
            "cursor": {"type": "string", "description": "A watch from here misses nothing"},
            "continue": {"type": ["string", "null"], "description": "The next page of the same instant"},
        },
    }
    summary = f"List {kind.plural}{which}, or with watch=1&cursor=… follow them as NDJSON"
    return _operation(summary, [*where, *(_query(word) for word in words)], page)


def _paths_by_hand() -> dict[str, Any]:
    name = [_path_parameter("name")]
    any_object = {"type": "object"}
    records = {"type": "object", "properties": {"items": {"type": "array", "items": _ref("Record")}}}
    page = [_query(word) for word in ("since", "follow", "object", "limit")]
    bulk = {**_objects(any_object)}
    bulk["properties"] = {**bulk["properties"], "dry_run": {"type": "boolean"}}
    where = [_path_parameter("project"), _path_parameter("sha256")]
    selection = [_query(word) for word in ("since", "until", "actor", "kind", "project", "outcome", "after", "limit")]
    span = [_query("since"), _query("until")]
    return _metrics_paths() | {
        "/v1/accounting": {
            "get": _operation("What all projects requested and used", span, _ref("AccountingAnswer")),
        },
        "/v1/projects/{project}/accounting": {
            "get": _operation(
                "What a project requested and used", [_path_parameter("project"), *span], _ref("AccountingAnswer")
            ),
        },
        "/v1/audit": {
            "get": _operation(
                "The audit log's newest records; with after= those after that one", selection, _audit_page()
            )
        },
        "/v1/audit:verify": {
            "get": _operation("Whether the audit log's chain is whole", [], _ref("AuditVerdict")),
        },
        "/v1/apply": {"post": _operation("Create or change objects of any kinds, all or none", [], _results(), bulk)},
        "/v1/blobs/{sha256}": {
            "get": _operation("Content of an image, or of code", [_path_parameter("sha256"), _query("ticket")], {})
        },
        "/v1/projects/{project}/code/{sha256}": {
            "get": _operation("Whether a function's code is there", where, any_object),
            "put": _operation("Upload a function's code: a zip", where, any_object),
        },
        "/v1/events": {"get": _operation("What happened; with follow=1 as NDJSON", page, records)},
        "/v1/gateway": {"get": _operation("Where streams connect, and where functions are invoked", [], any_object)},
        "/v1/healthz": {"get": _operation("Whether the server and its store work, and what it can do", [], any_object)},
        "/v1/join": {"post": _operation("Enrol a node, with a join token", [], _ref("JoinAnswer"), _ref("JoinInput"))},
        "/v1/kinds": {"get": _operation("The kinds there are", [], any_object)},
        "/v1/nodes/{name}:egress": {
            "post": _operation(
                "A node's address in a network that a function reaches, by the node itself",
                name,
                _ref("AllocatedNic"),
                _ref("EgressEndpointInput"),
            )
        },
        "/v1/nodes/{name}:renew": {
            "post": _operation(
                "Give a node its next certificate, at the node's request", name, _ref("JoinAnswer"), _ref("RenewInput")
            )
        },
        "/v1/nodes/{name}:report": {
            "post": _operation("Take a node's report about itself", name, _ref("ReportAnswer"), _ref("ReportBody"))
        },
        "/v1/nodes/{name}:secrets": {
            "post": _operation(
                "The secrets that a node's allocation names, by the node itself",
                name,
                _ref("OpenedSecrets"),
                _ref("SecretsInput"),
            )
        },
        "/v1/login": {
            "post": _operation(
                "A token for a user's password, or for a login at the OIDC provider; takes no credentials",
                [],
                {"anyOf": [_ref("LoginAnswer"), _ref("LoginBegun")]},
                _ref("LoginInput"),
                "201",
            )
        },
        "/v1/users/{name}:passwd": {
            "post": _operation("Set a user's password (passwd)", name, any_object, _ref("PasswordInput"))
        },
        "/v1/whoami": {"get": _operation("The caller's roles", [], _ref("WhoAmI"))},
        "/v1/usage": {"get": _operation("What nodes and workloads use now", [_query("guests")], _ref("UsageAnswer"))},
        "/v1/openapi.json": {"get": _operation("This document", [], any_object)},
    }


def _metrics_paths() -> dict[str, Any]:
    """Prometheus' HTTP API, as far as the history of metrics has it."""
    answer = {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"enum": ["success", "error"]}, "data": {}, "error": {"type": "string"}},
    }
    found = {
        "query": ("Metrics at one moment, by a PromQL query", ("query", "time", "timeout")),
        "query_range": ("Metrics over a span of time, by a PromQL query", ("query", "start", "end", "step", "timeout")),
        "series": ("The series that selectors name", ("match[]", "start", "end")),
        "labels": ("The names of labels", ("match[]", "start", "end")),
    }
    paths: dict[str, Any] = {}
    for path, (summary, words) in found.items():
        operation = _operation(summary, [_query(word) for word in words], answer)
        paths[f"/api/v1/{path}"] = {"get": operation, "post": operation}
    parameters = [_path_parameter("name"), *(_query(word) for word in ("match[]", "start", "end"))]
    own = _operation("The API server's own metrics, as text for Prometheus", [], {"type": "string"})
    own["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"] = {"get": own}
    paths["/api/v1/label/{name}/values"] = {"get": _operation("The values of a label", parameters, answer)}
    return paths


def _audit_page() -> dict[str, Any]:
    follow = {"type": ["integer", "null"], "description": "after= for the next page"}
    items = {"type": "array", "items": _ref("AuditRecord")}
    return {"type": "object", "required": ["items", "continue"], "properties": {"items": items, "continue": follow}}


def _operation(
    summary: str,
    parameters: list[dict[str, Any]],
    answer: dict[str, Any],
    body: dict[str, Any] | None = None,
    status: str = "200",
) -> dict[str, Any]:
    out: dict[str, Any] = {"summary": summary}
    if parameters:
        out["parameters"] = parameters
    if body is not None:
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    out["responses"] = {
        status: _answered(answer),
        "default": {"$ref": "#/components/responses/Problem"},
    }
    return out


def _answered(answer: dict[str, Any]) -> dict[str, Any]:
    return {"description": "Done", "content": {"application/json": {"schema": answer}}}


def _gone(title: str) -> dict[str, Any]:
    """The last state of a deleted object; the answer to a repeated request has only the name."""
    repeated = {"type": "object", "properties": {"uid": {"const": ""}, "name": {"type": "string"}}}
    return {"anyOf": [_ref(title), repeated]}


def _results() -> dict[str, Any]:
    return {"type": "object", "properties": {"results": {"type": "array", "items": {"type": "object"}}}}


def _objects(item: dict[str, Any]) -> dict[str, Any]:
    objects = {"type": "array", "maxItems": MOST_OBJECTS, "items": item}
    return {"type": "object", "required": ["objects"], "properties": {"objects": objects}}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _force(kind: Kind) -> list[dict[str, Any]]:
    return [_query("force")] if kind.lifetime.runs_workloads else []


def _query(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "string"}}


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {"type": "string"}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _PREFIX + name}


def _title(kind: Kind) -> str:
    return kind.name.capitalize()


def render() -> str:
    """The document as it is checked in."""
    return msgspec.json.format(msgspec.json.encode(describe_api()), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())

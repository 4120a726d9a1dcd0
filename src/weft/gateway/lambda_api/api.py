"""Lambda's Invoke API, and the part of the others that clients read before they invoke.

Source: AWS Lambda API reference (2015-03-31). Errors are Lambda's, see ``answers.py``."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from weft.gateway.function.definition.catalogue import Catalogue, Function
from weft.gateway.function.definition.names import Named, read_name
from weft.gateway.function.invocation.call import AcceptsEvents, Call, Dispatches, read_client_context
from weft.gateway.lambda_api.answers import JSON, answer_json
from weft.gateway.lambda_api.describe import describe_aliases, describe_function, describe_version
from weft.gateway.lambda_api.http import LambdaRequest
from weft.gateway.lambda_api.idempotency import IdempotencyCache
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer
from weft.trust.credentials import Actor

PREFIX = "/2015-03-31/functions"
DEFAULT_PROJECT = "default"
MOST_LISTED = 50
MOST_ATTEMPTED = 100  # characters of an SDK's id
_SPACE = uuid.UUID("0c9cf4f0-4e0b-4c52-9d3e-0b7cf1a8b2d6")  # of the ids of invocations that SDKs name
_FIRST = re.compile(r"attempt=1(?:;|$)")
_JSON = msgspec.json.Decoder(msgspec.Raw)


class LambdaApi:
    def __init__(
        self, catalogue: Catalogue, dispatcher: Dispatches, events: AcceptsEvents, once: IdempotencyCache
    ) -> None:
        self._catalogue, self._dispatcher, self._events, self._once = catalogue, dispatcher, events, once

    async def answer(self, request: LambdaRequest, caller: Actor, request_id: str) -> Answer:
        """Raises WeftError."""
        segments = request.path[len(PREFIX) :].strip("/").split("/")
        query = dict(parse_qsl(request.query, keep_blank_values=True)) if request.query else {}
        if segments == [""]:
            _require(request, "GET")
            return answer_json(self._list(caller, query), request_id)
        named = read_name(segments[0], query.get("Qualifier", ""))
        project = named.project or caller.project or DEFAULT_PROJECT
        if segments[1:] == ["invocations"]:
            _require(request, "POST")
            caller.require("function:invoke", project, "invoke functions")
            return await self._invoke(request, caller, project, named, request_id)
        _require_reading(caller, "get", project)
        function = self._catalogue.find(project, named.name)
        item = function.item
        tails: dict[str, Callable[[], dict[str, Any]]] = {
            "": lambda: self._describe_whole(function, named.qualifier),
            "configuration": lambda: self._describe(function, named.qualifier),
            "versions": lambda: {
                "Versions": [
                    describe_function(item),
                    *(describe_version(v) for v in self._catalogue.versions(function)),
                ]
            },
            "aliases": lambda: {"Aliases": describe_aliases(item)},
        }
        describe = tails.get("/".join(segments[1:]))
        if describe is None:
            raise _not_served(request)
        _require(request, "GET")
        return answer_json(describe(), request_id)

    async def _invoke(
        self, request: LambdaRequest, caller: Actor, project: str, named: Named, request_id: str
    ) -> Answer:
        function = self._catalogue.find(project, named.name)
        attempted = request.header("amz-sdk-invocation-id")[:MOST_ATTEMPTED]
        if attempted:  # the id is the same for each attempt, at any gateway
            request_id = str(uuid.uuid5(_SPACE, "\n".join((caller.id, attempted, request.path, named.qualifier))))
        call = _read_call(request, project, named, request_id)
        kind = request.header("x-amz-invocation-type") or "RequestResponse"
        key = (caller.id, attempted, request.path)
        if kind == "RequestResponse":
            return await (
                self._once.run(key, lambda: self._run(call, function)) if attempted else self._run(call, function)
            )
        self._catalogue.published(function, named.qualifier)
        if kind == "DryRun":
            return Answer(204, b"", (("x-amzn-requestid", request_id),))
        if kind != "Event":
            raise InvalidInput(
                f"X-Amz-Invocation-Type: {kind[:40]!r} is not known",
                field="InvocationType",
                hint="RequestResponse, Event or DryRun",
            )
        return await (self._once.run(key, lambda: self._accept(call)) if attempted else self._accept(call))

    async def _accept(self, call: Call) -> Answer:
        await self._events.accept(call)
        return Answer(202, b"", (("x-amzn-requestid", call.id),))

    async def _run(self, call: Call, function: Function) -> Answer:
        outcome = await self._dispatcher.invoke(call, function)
        headers = [JSON, ("x-amzn-requestid", outcome.id), ("x-amz-executed-version", outcome.version)]
        if outcome.error:
            headers.append(("x-amz-function-error", outcome.error))
        if call.tail:
            headers.append(("x-amz-log-result", base64.b64encode(outcome.tail[-4096:]).decode()))
        return Answer(200, outcome.payload, tuple(headers))

    def _describe(self, function: Function, qualifier: str) -> dict[str, Any]:
        version = self._catalogue.published(function, qualifier)
        return describe_function(function.item, qualifier) if version is None else describe_version(version)

    def _describe_whole(self, function: Function, qualifier: str) -> dict[str, Any]:
        spec = function.spec
        code = {"RepositoryType": "ECR", "ImageUri": spec.image} if spec.image else {"RepositoryType": "weft"}
        return {
            "Configuration": self._describe(function, qualifier),
            "Code": code,
            "Tags": dict(function.item.envelope.labels),
            "Concurrency": {"ReservedConcurrentExecutions": spec.max_concurrent},
        }

    def _list(self, caller: Actor, query: dict[str, str]) -> dict[str, Any]:
        project = caller.project or DEFAULT_PROJECT
        _require_reading(caller, "list", project)
        limit = query.get("MaxItems", str(MOST_LISTED))
        if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= 10_000):
            raise InvalidInput(f"MaxItems: {limit[:40]!r} is not a number from 1 to 10000", field="MaxItems")
        items = [i for i in self._catalogue.functions(project) if i.envelope.name > query.get("Marker", "")]
        page = items[: min(int(limit), MOST_LISTED)]
        found: dict[str, Any] = {"Functions": [describe_function(item) for item in page]}
        if len(items) > len(page):
            found["NextMarker"] = page[-1].envelope.name
        return found


def _require_reading(caller: Actor, verb: str, project: str) -> None:
    """Raise Forbidden unless the caller may ``verb`` the project's functions, or invoke them: SDKs read before they invoke."""
    if not caller.permits("function:invoke", project):
        caller.require(f"function:{verb}", project, f"{verb} functions")


def _read_call(request: LambdaRequest, project: str, named: Named, request_id: str) -> Call:
    """Raises InvalidInput for a body that isn't JSON, and for a context that isn't base64 of JSON."""
    payload = request.body
    if payload:
        try:
            _JSON.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise InvalidInput(
                f"the request's body is not JSON: {problem}", reason="invalidPayload", hint="send one JSON document"
            ) from None
    log_type = request.header("x-amz-log-type")
    if log_type not in ("", "None", "Tail"):
        raise InvalidInput(f"X-Amz-Log-Type: {log_type[:40]!r} is neither None nor Tail", field="LogType")
    return Call(
        id=request_id,
        project=project,
        name=named.name,
        qualifier=named.qualifier,
        payload=payload or b"{}",
        tail=log_type == "Tail",
        client_context=_read_context(request.header("x-amz-client-context")),
        traceparent=request.header("traceparent"),
        again=bool(request.header("amz-sdk-invocation-id")) and not _FIRST.match(request.header("amz-sdk-request")),
    )


def _read_context(encoded: str) -> str:
    try:
        return read_client_context(base64.b64decode(encoded, validate=True), "ClientContext") if encoded else ""
    except ValueError:
        raise InvalidInput(
            "ClientContext must be base64 of a JSON object", reason="invalidPayload", field="ClientContext"
        ) from None


def _require(request: LambdaRequest, *methods: str) -> None:
    if request.method not in methods:
        raise _not_served(request)


def _not_served(request: LambdaRequest) -> InvalidInput:
    return InvalidInput(
        f"{request.method} {request.path[:200]} is not served: only weft's own API creates and changes functions",
        reason="notServed",
        hint="weft function create, update, delete, publish, alias",
    )

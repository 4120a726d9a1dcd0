"""Routes a request, once its caller is authenticated: Lambda's API, a function's own address, dead letters."""

from __future__ import annotations

import logging
import re

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.function.definition.catalogue import Catalogue
from weft.gateway.function.definition.names import read_name
from weft.gateway.function.invocation.call import Call, Dispatches
from weft.gateway.lambda_api import function_url, other_gateways
from weft.gateway.lambda_api.answers import JSON, answer_error, answer_json, retry_after, type_of
from weft.gateway.lambda_api.api import PREFIX, LambdaApi
from weft.gateway.lambda_api.authenticate import Authenticator
from weft.gateway.lambda_api.dead_letters import DEAD_LETTERS, DeadLetterApi
from weft.gateway.lambda_api.http import LambdaRequest
from weft.gateway.lambda_api.other_gateways import OtherGatewayApi
from weft.objects.errors import NotAuthenticated, NotFound, WeftError
from weft.objects.identity import new_uid
from weft.serving.answer import Answer

log = logging.getLogger("weft.gateway")
audit = logging.getLogger("weft.audit")
MOST_BODY_BYTES = 6 * 1024 * 1024
_PROJECT = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class FunctionRouter:
    """``answer`` is what an HttpServer calls."""

    def __init__(
        self,
        authenticator: Authenticator,
        catalogue: Catalogue,
        dispatcher: Dispatches,
        api: LambdaApi,
        dead_letters: DeadLetterApi,
        clock: Clock,
        gateways: OtherGatewayApi | None = None,
    ) -> None:
        self._gateways = gateways
        self._authenticator, self._catalogue, self._dispatcher, self._api = authenticator, catalogue, dispatcher, api
        self._dead_letters, self._clock = dead_letters, clock

    async def answer(self, request: LambdaRequest) -> Answer:
        request_id = new_uid()
        path = request.path
        try:
            if self._gateways is not None and path in other_gateways.PATHS:
                return await self._gateways.answer(request)
            await self._dispatcher.know()  # before that a valid key is unknown
            if path.startswith(function_url.PREFIX):
                return await self._trigger(request, request_id)
            caller = self._authenticator.identify(request)
            if path.startswith(PREFIX) and path[len(PREFIX) : len(PREFIX) + 1] in ("", "/"):
                return await self._api.answer(request, caller, request_id)
            if (found := DEAD_LETTERS.fullmatch(path)) is not None:
                return await self._dead_letters.answer(request, caller, request_id, found)
            raise NotFound(
                f"{path[:200]!r} is not served here",
                hint=f"{PREFIX}/NAME/invocations, or {function_url.PREFIX}PROJECT/NAME/…",
            )
        except WeftError as problem:
            if isinstance(problem, NotAuthenticated):
                audit.info("refused from=%s path=%s reason=%s", request.address, path[:200], problem.token)
            if path.startswith("/v1/"):
                return answer_json(problem.to_dict() | {"request_id": request_id}, request_id, type_of(problem)[0])
            return answer_error(problem, request_id)

    async def _trigger(self, request: LambdaRequest, request_id: str) -> Answer:
        project, _, rest = request.path[len(function_url.PREFIX) :].partition("/")
        segment, slash, rest = rest.partition("/")
        try:
            if not _PROJECT.fullmatch(project):
                raise NotFound("no such address")
            named = read_name(segment)
            if named.project:
                raise NotFound("no such address")
            function = self._catalogue.find(project, named.name)
            spec = function.spec
            if spec.http == "none":
                raise NotFound("no such address")
        except WeftError:  # the caller may be anybody: the answer doesn't show which functions exist
            return _answer_word(404, "Not Found", request_id)
        if spec.http == "token":
            try:
                self._authenticator.identify(request).require("function:invoke", project, "invoke functions")
            except WeftError as problem:
                audit.info("refused from=%s path=%s reason=%s", request.address, request.path[:200], problem.token)
                return _answer_word(403, "Forbidden", request_id)
        event = function_url.make_event(
            request,
            project=project,
            name=named.name,
            path=f"/{rest}" if slash else "/",
            request_id=request_id,
            now=self._clock.now(),
            drop_authorization=spec.http == "token",
        )
        call = Call(
            id=request_id,
            project=project,
            name=named.name,
            qualifier=named.qualifier,
            payload=event,
            traceparent=request.header("traceparent"),
        )
        try:
            return function_url.read_answer(await self._dispatcher.invoke(call, function))
        except function_url.BadAnswer as problem:
            log.info("function/%s of %s, %s: %s", named.name, project, request_id, problem)
            return _answer_word(502, "Internal Server Error", request_id)
        except WeftError as problem:
            status = type_of(problem)[0]
            log.info("function/%s of %s, %s: %s", named.name, project, request_id, problem.message)
            words = {404: "Not Found", 413: "Request Entity Too Large", 429: "Too Many Requests"}
            answer = _answer_word(status, words.get(status, "Service Unavailable"), request_id)
            answer.headers += retry_after(problem)
            return answer


def _answer_word(status: int, word: str, request_id: str) -> Answer:
    return Answer(status, msgspec.json.encode({"Message": word}), (JSON, ("x-amzn-requestid", request_id)))

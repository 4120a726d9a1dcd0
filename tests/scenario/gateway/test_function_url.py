"""A function's own address: requests become events, answers become responses, and what a function says can't break out of one."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from tests.scenario.function_api_lab import ApiLab, api_lab

from weft.protocol.invocations import InvocationAnswer, InvocationRefused


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()  # the gateway's own


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiLab]:
    async with api_lab(tmp_path) as lab:
        await lab.lab.agent("n1")
        await lab.lab.function("web", http="open")
        yield lab


def give(api: ApiLab, document: Any, **more: Any) -> None:
    payload = document if isinstance(document, bytes) else msgspec.json.encode(document)
    api.lab.agents["n1"].says = lambda agent, invoke: InvocationAnswer(invoke.id, payload, **more)


def event(api: ApiLab) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(api.lab.agents["n1"].invoked[-1].payload)
    return told


async def test_a_request_becomes_an_event_of_format_2(api: ApiLab) -> None:
    give(api, {"statusCode": 200})
    status, headers, _ = await api.ask(
        "PUT",
        "/url/default/web/a%20b/c?x=1&x=2&y=%C3%A9&z=",
        "ä{}".encode(),
        Content_Type="application/json; charset=utf-8",
        Cookie="a=1; b=2",
        X_Many="one",
        User_Agent="me",
        Authorization="Basic b3duOmF1dGg=",
    )
    told = event(api)
    assert status == 200 and (told["version"], told["routeKey"]) == ("2.0", "$default")
    assert (told["rawPath"], told["rawQueryString"]) == ("/a b/c", "x=1&x=2&y=%C3%A9&z=")
    assert told["queryStringParameters"] == {"x": "1,2", "y": "é", "z": ""}
    assert told["cookies"] == ["a=1", "b=2"] and "cookie" not in told["headers"]
    assert told["headers"]["x-many"] == "one" and told["headers"]["authorization"] == "Basic b3duOmF1dGg="
    assert (told["body"], told["isBase64Encoded"]) == ("ä{}", False)
    context = told["requestContext"]
    assert context["http"] == {
        "method": "PUT",
        "path": "/a b/c",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "me",
    }
    assert context["requestId"] == headers["x-amzn-requestid"] == api.lab.agents["n1"].invoked[0].id
    assert (context["accountId"], context["apiId"]) == ("default", "web")
    for kind, body in (
        ("image/png", b"\x89PNG"),
        ("text/plain", b"\xff\xfe"),
        ("application/x-www-form-urlencoded", b"a=1"),
    ):
        await api.ask("POST", "/url/default/web/", body, Content_Type=kind)
        assert event(api)["isBase64Encoded"] and base64.b64decode(event(api)["body"]) == body


async def test_answers_become_responses(api: ApiLab) -> None:
    give(api, {"hello": 1})
    status, headers, body = await api.ask("GET", "/url/default/web")
    assert (status, headers["content-type"], body) == (200, "application/json", b'{"hello":1}')
    png = base64.b64encode(b"\x89PNG").decode()
    give(
        api,
        {
            "statusCode": 418,
            "headers": {"Content-Type": "image/png", "X-N": 7, "Connection": "upgrade", "Content-Length": "1"},
            "cookies": ["a=1; HttpOnly"],
            "body": png,
            "isBase64Encoded": True,
        },
    )
    status, headers, body = await api.ask("GET", "/url/default/web")
    assert (status, body, headers["content-type"]) == (418, b"\x89PNG", "image/png")
    assert headers["set-cookie"] == "a=1; HttpOnly" and headers["x-n"] == "7" and headers["content-length"] == "4"
    give(api, {"statusCode": 204})
    assert (await api.ask("GET", "/url/default/web"))[0::2] == (204, b"")


@pytest.mark.parametrize(
    "said",
    [
        b"no json",
        {"statusCode": "200"},
        {"statusCode": 99},
        {"statusCode": 101},
        {"statusCode": True},
        {"statusCode": 200, "headers": {"X-A": "1\r\nSet-Cookie: b=2"}},
        {"statusCode": 200, "headers": {"X A": "1"}},
        {"statusCode": 200, "headers": {"X-A": "☃"}},
        {"statusCode": 200, "headers": {"X-A": ["1"]}},
        {"statusCode": 200, "headers": ["X-A"]},
        {"statusCode": 200, "cookies": ["a=1\r\nX: y"]},
        {"statusCode": 200, "cookies": "a=1"},
        {"statusCode": 200, "body": "%%%", "isBase64Encoded": True},
    ],
)
async def test_an_answer_that_is_no_response_is_a_bad_gateway_and_nothing_of_it_is_sent(api: ApiLab, said: Any) -> None:
    give(api, said)
    status, headers, body = await api.ask("GET", "/url/default/web")
    assert (status, json.loads(body)) == (502, {"Message": "Internal Server Error"})
    assert not {"set-cookie", "x-a"} & headers.keys()


async def test_errors_and_refusals_tell_a_stranger_no_more_than_he_may_know(api: ApiLab) -> None:
    give(api, {"errorType": "E", "errorMessage": "the password is 7"}, error="Unhandled", error_type="E")
    status, _, body = await api.ask("GET", "/url/default/web")
    assert status == 502 and b"password" not in body
    api.lab.agents["n1"].says = lambda agent, invoke: InvocationRefused(
        invoke.id, "insufficientResources", "n1 is full"
    )
    status, _, body = await api.ask("GET", "/url/default/web")
    assert status == 503 and b"n1" not in body
    await api.lab.function("shut")
    for path in (
        "/url/default/shut/",
        "/url/default/none/",
        "/url/other/web/",
        "/url/",
        "/url//",
        "/url/../web/",
        "/url/default/%00",
    ):
        assert (await api.ask("GET", path))[0] == 404, path


async def test_one_that_wants_a_token_wants_one_of_its_project_and_the_code_never_sees_it(api: ApiLab) -> None:
    await api.lab.function("closed", http="token")
    give(api, {"ok": True})
    good = await api.token("good", project="default")
    other, viewer = await api.token("other", project="lab"), await api.token("viewer", role="viewer")
    path = "/url/default/closed/x"
    for headers in (
        {},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Bearer {other}"},
        {"Authorization": f"Bearer {viewer}"},
    ):
        status, _, body = await api.ask("GET", path, **headers)
        assert (status, json.loads(body)) == (403, {"Message": "Forbidden"})
    assert api.lab.agents["n1"].invoked == []
    assert (await api.ask("GET", path, Authorization=f"Bearer {good}"))[0] == 200
    assert good not in api.lab.agents["n1"].invoked[0].payload.decode()
    assert "authorization" not in event(api)["headers"]

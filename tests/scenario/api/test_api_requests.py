"""The API servers against strangers, nonsense and weather: all that comes in gets an answer that says what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.long import examples
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.api.openapi import render
from weft.client import Client, Context
from weft.client.answer import ClientAnswer, raise_problem
from weft.client.context import hash_ca
from weft.client.tls import fetch_ca
from weft.contracts.store import StoreFull
from weft.kinds.registry import KINDS
from weft.objects.errors import Forbidden, NotAuthenticated, Unavailable, WeftError
from weft.trust.tokens import make_token


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    """One lab for all tests that leave nothing behind."""
    lab = ApiLab(tmp_path_factory.mktemp("api"))
    lab.client.create(make_image())
    lab.client.create(make_vm("web"))
    yield lab
    lab.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def converse(lab: ApiLab, request: bytes) -> bytes:
    """Send raw bytes over TLS and read until the answer is whole or the server closes: it may long read on, to be heard."""
    tls = ssl.create_default_context(cadata=lab.context.ca)
    with (
        socket.create_connection(("127.0.0.1", lab.port), 10) as plain,
        tls.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        answer = b""
        with contextlib.suppress(OSError):  # a server that has heard enough hangs up while we still send
            sock.sendall(request)
        with contextlib.suppress(OSError):
            while not is_whole(answer) and (piece := sock.recv(65536)):
                answer += piece
        return answer


def is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def send(lab: ApiLab, method: str, path: str, body: Any = None, **headers: str) -> ClientAnswer:
    return lab.client.http.request(method, path, body, headers=headers)


def check_problem(answer: ClientAnswer, status: int, reason: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status, problem["reason"]) == (status, reason), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.body.decode()
    return problem


def test_nothing_is_anonymous(shared: ApiLab) -> None:
    stranger = shared.connect(msgspec.structs.replace(shared.context, token=""))
    for path in ("/v1/healthz", "/v1/vms", "/v1/openapi.json", "/nowhere", "/v1/projects/default/vms/web"):
        problem = check_problem(stranger.http.request("GET", path), 401, "notAuthenticated")
        assert problem["hint"]
    assert stranger.http.request("POST", "/v1/join", {}).headers["www-authenticate"] == "Bearer"


def test_a_wrong_token_is_refused_and_not_repeated_in_the_answer(shared: ApiLab) -> None:
    known = shared.context.token.split("_")[1]
    for token in (make_token(known)[0], make_token("nobody")[0], "weft_x_yyyy", "Bearer", "é" * 10):
        client = shared.connect(msgspec.structs.replace(shared.context, token="x"))
        answer = client.http.request("GET", "/v1/vms", headers={"Authorization": f"Bearer {token}"})
        check_problem(answer, 401, "notAuthenticated")
        assert token.split("_")[-1].encode() not in answer.body
    answer = shared.client.http.request("GET", "/v1/vms", headers={"Authorization": "Basic YTpi"})
    check_problem(answer, 401, "notAuthenticated")


def test_an_expired_token_is_worth_nothing(shared: ApiLab) -> None:
    client = shared.with_token(use="access", role="admin", expires_at=1.0)
    with pytest.raises(NotAuthenticated, match="has expired"):
        client.list("vm")


def test_a_viewer_reads_and_changes_nothing(shared: ApiLab) -> None:
    viewer = shared.with_token(use="access", subject="eve")
    assert viewer.get("vm", "web")["name"] == "web"
    for act in (
        lambda: viewer.create(make_vm("x")),
        lambda: viewer.put(make_vm("web", cpu=2)),
        lambda: viewer.patch("vm", "web", {"spec": {"cpu": 2}}),
        lambda: viewer.delete("vm", "web"),
        lambda: viewer.verb("vm", "web", "hold"),
        lambda: viewer.batch("vm", [make_vm("x")]),
        lambda: viewer.apply([make_vm("x")]),
        lambda: viewer.list("token"),
        lambda: viewer.create({"kind": "token", "name": "t", "spec": {"use": "access", "role": "admin"}}),
    ):
        with pytest.raises(Forbidden):
            act()


def every_route() -> Iterator[tuple[str, str]]:
    """Method and path of all that the API's description and the registry of kinds name, with what no route takes beside it."""
    paths = json.loads(render())["paths"]
    for kind in KINDS:
        for verb in kind.verbs:
            assert any(path.endswith(f"/{kind.plural}/{{name}}:{verb.name}") for path in paths), (kind.name, verb.name)
    for path, methods in paths.items():
        filled = path.format(project="default", name="web", sha256="ab" * 32, trace="cd" * 16, process="api", uid="u")
        on_object = path.endswith("/{name}")
        for method in ("get", "post", "put", "patch", "delete"):
            if method in methods or (on_object and method != "post"):
                yield method.upper(), filled


def test_rights_are_asked_for_before_anything_is_said_of_fields(shared: ApiLab) -> None:
    """Who may not ask hears that, and not what is wrong with the query, the body or the object."""
    viewer, node = shared.with_token(use="access", subject="eve"), shared.join("n9").client
    joiner = shared.with_token(use="join")
    tried = 0
    for method, path in every_route():
        if path == "/v1/session":
            continue  # for browsers: tests/scenario/api/test_dashboard_sessions.py
        hidden = ("/tokens", "/users", "/groups", "/rolebindings", "/blobs/", "/code/", "/onnx/", "/audit", "/history/")
        hidden += ("/packages/", ":seal-keys")
        reads = method == "GET" and not any(word in path for word in hidden)
        reads |= path.endswith((":logs", ":metrics", ":flows")) or path.startswith("/api/v1/")
        reads &= path not in (
            "/v1/nodes/web:logs",
            "/v1/server/logs/api",
            "/v1/link",
        )  # what agents and servers say is for operators, and for clusters
        told = {"viewer": reads, "joiner": path in ("/v1/join", "/v1/healthz"), "node": path == "/v1/healthz"}
        told["node"] |= method == "GET" and path.startswith("/v1/publishedports")
        told["node"] |= method == "GET" and path.endswith("/snapshots")  # those that it keeps
        told["node"] |= method == "GET" and path.endswith(
            ("/devices", "/devicemodels", "/rules", "/models")
        )  # of its gateway
        told["node"] |= method == "GET" and path in ("/v1/projects/default/images/web", "/v1/blobs/" + "ab" * 32)
        if path in ("/v1/login", "/", "/assets/web"):  # anybody may ask
            told = dict.fromkeys(told, True)
        for who, client in (("viewer", viewer), ("joiner", joiner), ("node", node)):
            answer = client.http.request(method, f"{path}?nope=1", b'["', headers={"Idempotency-Key": "k"})
            assert (answer.status != 403) is told[who], (who, method, path, answer.status, answer.body)
            tried += 1
    assert tried > 600


def test_who_may_only_look_takes_no_contents(lab: ApiLab) -> None:
    data = b"an image"
    digest = hashlib.sha256(data).hexdigest()
    (lab.settings.blobs / digest).write_bytes(data)
    assert lab.client.http.request("GET", f"/v1/blobs/{digest}").body == data
    refused = lab.with_token(use="access", subject="eve").http.request("GET", f"/v1/blobs/{digest}")
    check_problem(refused, 403, "forbidden")


def test_a_tokens_secret_is_told_once_and_only_its_hash_kept(lab: ApiLab) -> None:
    answer = send(lab, "POST", "/v1/tokens", {"spec": {"use": "join"}})
    made = answer.json()
    assert (answer.status, made["name"][:5]) == (201, "join-")
    assert made["spec"]["expires_at"] > lab.clock.now()
    secret = made["secret"].rpartition("_")[2]
    assert secret not in json.dumps(lab.client.list("token").items)
    stored = lab.run(lab.store.get(f"/token/-/{made['name']}"))
    assert stored is not None and secret.encode() not in stored.value
    check_problem(send(lab, "POST", "/v1/tokens", {"spec": {"use": "join", "sha256": "0" * 64}}), 400, "unknownField")
    check_problem(send(lab, "PUT", "/v1/tokens/x", {"name": "x", "spec": {"use": "join"}}), 400, "invalidInput")
    manifest = {"kind": "token", "name": "x", "spec": {"use": "access"}}
    check_problem(send(lab, "POST", "/v1/apply", {"objects": [manifest]}), 400, "invalidInput")


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/v2/vms", 404, "notFound"),
        ("GET", "/v1", 404, "notFound"),
        ("GET", "/v1/", 404, "unknownKind"),
        ("GET", "//v1//vms", 404, "notFound"),
        ("GET", "/v1/vms/", 404, "notFound"),
        ("GET", "/v1/vms/web", 404, "notFound"),
        ("GET", "/v1/vm", 404, "unknownKind"),
        ("GET", "/v1/projects/default/nodes", 404, "notFound"),
        ("GET", "/v1/projects/nope/vms/web", 404, "notFound"),
        ("GET", "/v1/projects/default/vms/%2e%2e%2fx", 404, "notFound"),
        ("GET", "/v1/projects/default/vms/web%00", 404, "notFound"),
        ("GET", "/v1/projects/default/vms/%ff%fe", 404, "notFound"),
        ("GET", "/v1/projects/a%2Fb/vms", 404, "notFound"),
        ("GET", "/v1/projects/default/vms/" + "x" * 3000, 404, "notFound"),
        ("GET", "/v1/vms?limit=-1", 400, "invalidInput"),
        ("GET", "/v1/vms?limit=1e9", 400, "invalidInput"),
        ("GET", "/v1/vms?lables=a", 400, "unknownField"),
        ("GET", "/v1/vms?network=web", 400, "unknownField"),  # names of endpoints begin with a network
        ("GET", "/v1/vms?labels=a&labels=b", 400, "invalidInput"),
        ("GET", "/v1/vms?continue=x", 410, "cursorGone"),
        ("GET", "/v1/vms?labels=%ff%00", 200, ""),
        ("GET", "/v1/vms?watch=1", 400, "invalidInput"),
        ("GET", "/v1/vms?watch=1&cursor=%00", 410, "cursorGone"),
        ("GET", "/v1/events?since=x", 400, "invalidInput"),
        ("GET", "/v1/events?object=%27%3bdrop", 200, ""),
        ("DELETE", "/v1/vms", 405, "methodNotAllowed"),
        ("PUT", "/v1/projects/default/vms", 405, "methodNotAllowed"),
        ("OPTIONS", "/v1/healthz", 405, "methodNotAllowed"),
        ("GET", "/v1/join", 405, "methodNotAllowed"),
        ("GET", "/v1/projects/default/vms/web:hold", 405, "methodNotAllowed"),
        ("POST", "/v1/projects/default/vms/web:", 404, "notFound"),
        ("POST", "/v1/projects/default/vms:bitch", 404, "notFound"),
        ("POST", "/v1/nodes/n1:report", 403, "forbidden"),
    ],
)
def test_an_odd_path_gets_a_plain_answer(shared: ApiLab, method: str, path: str, status: int, reason: str) -> None:
    answer = send(shared, method, path)
    if status == 200:
        assert answer.status == 200
    else:
        check_problem(answer, status, reason)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"text"',
        b"nul",
        b"\xff\xfe\x00",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b'{"name": "x", "spec": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_002,
        b"[" * 200_000,
        b'{"name":"x","spec":{"memory":' + b"9" * 5000 + b"}}",
        b'{"name":"x","spec":{"cpu":1e999}}',
        b'{"name":"x","spec":{"cpu":NaN}}',
        b'{"name":"x","labels":{"a":1}}',
        b'{"name":"x","labels":[1]}',
        b'{"name":"x","spec":[1]}',
        b'{"name":["x"]}',
        b'{"name":"x","kind":"node"}',
        b'{"name":"x","project":5}',
        b'{"name":"x","generation":"1"}',
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/projects/default/vms"), ("PATCH", "/v1/projects/default/vms/web"), ("POST", "/v1/apply")],
)
def test_a_body_that_makes_no_sense_is_the_senders_fault(shared: ApiLab, method: str, path: str, body: bytes) -> None:
    before = shared.revision()
    answer = send(shared, method, path, body)
    assert answer.status in (400, 404), answer.body
    assert answer.json()["message"] and "Traceback" not in answer.body.decode()
    assert shared.revision() == before


@pytest.mark.parametrize("path", ["/v1/projects/default/vms", "/v1/apply"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"name":"x","name":"y"}', "name"),
        (b'{"name":"x","spec":{"memory":"1G", "memory":"8G"}}', "spec.memory"),
        (b'{"labels":{"a":"1","\\u0061":"2"}}', "labels.a"),
        (b'{"spec":[1,{"a":{"b":1,"b":2}}],"spec":{"c":1,"c":2}}', "spec"),
        (b'{"spec":[1,{"a":{"b":1,"b":2}}]}', "spec.1.a.b"),
    ],
)
def test_a_key_that_a_body_has_twice_is_named(shared: ApiLab, path: str, body: bytes, field: str) -> None:
    answer = send(shared, "POST", path, body)
    told = answer.json()
    assert (answer.status, told["field"], told["hint"]) == (400, field, "keep one of them"), told
    assert told["message"] == f"{field} is given twice"


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
_fields = st.sampled_from([f for kind in KINDS for f in kind.spec.__struct_fields__])


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([kind for kind in KINDS if kind.access.writer == "people" and kind.name != "token"]),
    top=st.dictionaries(st.sampled_from(["kind", "name", "project", "labels", "generation", "x"]), _plain, max_size=3),
    spec=st.dictionaries(_fields | st.text(max_size=5), _plain, max_size=4),
)
def test_no_manifest_makes_the_server_fail(shared: ApiLab, kind: Any, top: Any, spec: Any) -> None:
    base = "/v1/projects/default" if kind.scope == "project" else "/v1"
    body = msgspec.json.encode({"name": "x", "spec": spec, **top})
    answer = send(shared, "POST", f"{base}/{kind.plural}?dry_run=1", body)
    # 403: an arrival is made by a linked cluster alone.
    assert answer.status in (200, 400, 404, 409) or (kind.name, answer.status) == ("arrival", 403), answer.body
    answer = send(shared, "POST", "/v1/apply", msgspec.json.encode({"objects": [top, spec], "dry_run": True}))
    assert answer.status in (200, 400), answer.body


def test_an_oversize_body_is_refused_unread(shared: ApiLab) -> None:
    head = f"Host: x\r\nAuthorization: Bearer {shared.context.token}\r\n"
    answer = converse(
        shared, f"POST /v1/projects/default/vms HTTP/1.1\r\n{head}Content-Length: 99999999999\r\n\r\n{{".encode()
    )
    assert answer.startswith(b"HTTP/1.1 413") and b'"tooLarge"' in answer
    answer = converse(
        shared,
        f"POST /v1/projects/default/vms HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 62,
    )
    assert answer.startswith(b"HTTP/1.1 413")
    check_problem(send(shared, "POST", "/v1/projects/default/vms", b" " * 4_000_001), 413, "tooLarge")
    assert send(shared, "POST", "/v1/apply", {"objects": [], "dry_run": True}).status == 200
    too_many = {"objects": [make_vm(f"v{i}") for i in range(1001)]}
    check_problem(send(shared, "POST", "/v1/projects/default/vms:batch", too_many), 400, "invalidInput")


def test_what_is_no_http_is_told_so(shared: ApiLab) -> None:
    assert converse(shared, b"hello\r\n\r\n").startswith(b"HTTP/1.1 400")
    # Its answer may be lost with the connection, if the rest of the head was still on its way.
    assert converse(shared, b"GET / HTTP/1.1\r\nX: " + b"a" * 300_000 + b"\r\n\r\n")[:12] in (b"HTTP/1.1 400", b"")
    upgrade = b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert converse(shared, upgrade).startswith(b"HTTP/1.1 401")


def test_a_head_that_never_ends_is_hung_up_on(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.serving.server.CHECK_SECONDS", 0.05)
    for name in ("IDLE_SECONDS", "HEAD_SECONDS"):
        monkeypatch.setattr(f"weft.serving.protocol.{name}", 0.2)
    assert converse(lab, b"") == b""
    assert converse(lab, b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\n") == b""


def test_a_request_id_given_is_given_back(shared: ApiLab) -> None:
    answer = send(shared, "GET", "/v1/nowhere", **{"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-1"
    assert send(shared, "GET", "/v1/nowhere", **{"X-Request-Id": "not ok!"}).headers["x-request-id"] != "not ok!"


@pytest.mark.parametrize("kind", [RuntimeError, WeftError])
def test_a_failure_inside_is_told_without_its_details(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    async def break_(*_: object, **__: object) -> None:
        raise kind("the secret is 12345")

    monkeypatch.setattr(lab.store, "list", break_)
    problem = check_problem(send(lab, "GET", "/v1/vms"), 500, "internalError")
    assert "12345" not in json.dumps(problem)
    assert problem["request_id"] in caplog.text and "12345" in caplog.text
    assert lab.context.token not in caplog.text


def test_the_log_has_a_line_for_what_someone_did_and_none_for_reads_and_signs_of_life(
    lab: ApiLab, caplog: pytest.LogCaptureFixture
) -> None:
    node = lab.join("n1")
    with caplog.at_level(logging.INFO, "weft.api"):
        node.report()
        lab.client.list("vm")
        assert not caplog.messages
        lab.client.create({"kind": "project", "name": "blue", "spec": {}})
        send(lab, "POST", "/v1/nodes/n1:report")  # which is not for people to say
    assert [line.partition(" ms")[0].rpartition(" ")[0] for line in caplog.messages] == [
        "POST /v1/projects 201",
        "POST /v1/nodes/n1:report 403",
    ]


def test_a_full_store_is_told_as_such_and_reads_go_on(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> int:
        raise StoreFull("no room on the disk", hint="make room")

    monkeypatch.setattr(lab.store, "commit", refuse)
    check_problem(send(lab, "POST", "/v1/projects", {"name": "x"}), 507, "storeFull")
    assert lab.client.list("project").items


def test_too_many_requests_at_once_are_turned_away_with_a_time_to_come_back(lab: ApiLab) -> None:
    lab.api.busy = 10_000
    answer = send(lab, "GET", "/v1/healthz")
    check_problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "1"


def test_writers_at_the_same_object_never_see_each_other(lab: ApiLab) -> None:
    lab.client.create(make_image())
    lab.client.create(make_vm("web"))
    errors: list[Exception] = []

    def write(number: int) -> None:
        client = lab.connect()
        for count in range(10):
            try:
                client.patch("vm", "web", {"labels": {f"w{number}": str(count)}})
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert lab.client.get("vm", "web")["labels"] == {f"w{n}": "9" for n in range(8)}


def test_one_of_many_gets_a_contested_port(lab: ApiLab) -> None:
    lab.client.create(make_image())
    outcomes: list[int] = []

    def claim(number: int) -> None:
        body = make_vm(f"v{number}", publish=["18099:80"])
        outcomes.append(lab.connect().http.request("POST", "/v1/projects/default/vms", body).status)

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [201] + [409] * 7
    assert len(lab.client.list("vm").items) == 1


def test_health_and_kinds_are_told(shared: ApiLab) -> None:
    assert send(shared, "GET", "/v1/healthz").json()["status"] == "ok"
    assert send(shared, "HEAD", "/v1/healthz").body == b""
    kinds = {kind["name"]: kind for kind in send(shared, "GET", "/v1/kinds").json()["items"]}
    assert kinds.keys() == {kind.name for kind in KINDS}
    assert "exec" in [verb["name"] for verb in kinds["vm"]["verbs"]]


def test_the_description_of_the_api_is_the_one_checked_in(shared: ApiLab) -> None:
    kept = Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"
    assert kept.read_text() == render(), "python -m weft.api.openapi > docs/reference/openapi.json"
    assert send(shared, "GET", "/v1/openapi.json").json() == json.loads(kept.read_text())


def test_a_machine_that_knows_only_a_digest_finds_the_right_ca(shared: ApiLab) -> None:
    digest = hash_ca(shared.context.ca)
    assert fetch_ca(shared.context.server, digest).strip() == shared.context.ca.strip()
    with pytest.raises(NotAuthenticated, match="does not belong to the CA"):
        fetch_ca(shared.context.server, "0" * 64)


def test_a_server_of_another_ca_is_not_trusted(shared: ApiLab, lab: ApiLab) -> None:
    client = lab.connect(msgspec.structs.replace(lab.context, server=shared.context.server))
    with pytest.raises(NotAuthenticated, match="not the one this context trusts"):
        client.list("vm")


def test_a_server_that_is_not_there_is_named_with_the_next_step() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    context = Context(server=f"https://127.0.0.1:{port}")
    client = Client(context)
    with pytest.raises(Unavailable, match="no weft server answers") as caught:
        client.list("vm")
    assert "make up" in (caught.value.hint or "")


def test_a_later_start_keeps_the_token_and_mends_a_lost_context(lab: ApiLab) -> None:
    before = lab.context_path.read_bytes()
    lab.restart()
    assert lab.context_path.read_bytes() == before
    assert lab.context_path.stat().st_mode & 0o777 == 0o600
    lab.context_path.unlink()
    lab.client.delete("network", "default")
    lab.restart()
    fresh = lab.connect(msgspec.json.decode(lab.context_path.read_bytes(), type=Context))
    assert fresh.list("network").items == []  # what people deleted stays so
    with pytest.raises(NotAuthenticated):
        lab.client.list("network")  # the token in the lost file is worth nothing any more
    raise_problem(fresh.http.request("GET", "/v1/healthz"))

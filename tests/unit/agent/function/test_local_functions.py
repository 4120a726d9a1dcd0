"""Functions that a node serves at an address of its own: who may invoke them, what is bounded, and what is left after a restart
while no server answers."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.agent.function.local import functions as module
from weft.agent.function.local import server as local_server
from weft.agent.function.local.functions import LocalFunctions
from weft.agent.function.local.server import check_payload, make_server
from weft.agent.function.local.usage import Usage
from weft.contracts.clock import SystemClock
from weft.contracts.driver.function import Blob, Recipe
from weft.launch.agent.functions import read_place
from weft.objects.errors import InvalidInput, NotFound, Unavailable, WeftError
from weft.objects.identity import Ref
from weft.protocol.invocations import InvocationAnswer, InvocationRefused, Invoke, LocalFunction, ServeLocally
from weft.protocol.report import OpenedSecrets
from weft.serving import protocol
from weft.serving.server import listen

TOKEN, OTHER = "a-long-token-of-the-shop", "a-long-token-of-the-others"


class Fabric:
    """The server, which answers while ``here``, and the node's parts and instances; ``answer`` says how an invocation ends."""

    def __init__(self) -> None:
        self.here, self.offline = True, True
        self.secret, self.reason = "door", "secretNotFound"
        self.tokens = {"shop/label": TOKEN, "others/label": OTHER}
        self.kept: set[str] = set()  # recipes whose parts are here
        self.slow: set[str] = set()  # recipes whose parts are being fetched without end
        self.learnt: set[str] = set()
        self.missing = ""
        self.invoked: list[Invoke] = []
        self.begun: set[str] = set()  # invocations
        self.given_up: list[str] = []  # or asked to be
        self.waiting: list[asyncio.Future[InvocationAnswer | InvocationRefused]] = []
        self.answer: Callable[[Invoke], InvocationAnswer | InvocationRefused | None] = lambda call: InvocationAnswer(
            call.id, call.payload, seconds=0.5
        )
        self.events: list[tuple[str, str, str]] = []  # function, reason, message

    def read_function_secret(self, node: str, function: str) -> OpenedSecrets:
        if not self.here:
            raise Unavailable("the server can't be reached")
        if function not in self.tokens:
            raise NotFound("no such secret", reason=self.reason)
        return OpenedSecrets(
            {self.secret: {"token": self.tokens[function]}}, offline=[self.secret] if self.offline else []
        )

    async def keep(self, recipe: Recipe) -> None:
        if recipe.digest in self.slow:
            await asyncio.Event().wait()  # it never comes
        if not self.here and recipe.digest not in self.kept:
            raise Unavailable("the code can't be fetched: the server can't be reached")
        self.kept.add(recipe.digest)

    def learn_local(self, recipe: Recipe) -> None:
        self.learnt.add(recipe.digest)

    def drop_local(self, digest: str) -> None:
        self.learnt.discard(digest)

    def find_missing(self, isolation: str) -> str:
        return self.missing

    def run_here(self, call: Invoke) -> asyncio.Future[InvocationAnswer | InvocationRefused]:
        self.invoked.append(call)
        waiting: asyncio.Future[InvocationAnswer | InvocationRefused] = asyncio.get_running_loop().create_future()
        answer = self.answer(call)
        if answer is None:
            self.waiting.append(waiting)
        else:
            waiting.set_result(answer)
        return waiting

    def give_up(self, call: str) -> bool:
        self.given_up.append(call)
        return call not in self.begun

    def put_event(self, object: Ref, type_: str, reason: str, message: str) -> None:
        self.events.append((object.name, reason, message))


def make_function(project: str = "shop", name: str = "label", most: int = 2) -> LocalFunction:
    code = Blob("c0" * 32, 10, ticket="secret-ticket")
    recipe = Recipe(digest=f"{project}/{name}", function="f", project=project, name=name, code=code, timeout=5.0)
    return LocalFunction(f"uid-{project}-{name}", recipe, "door", most)


class Node:
    """An agent's part, started again by ``restart`` as after kill -9, and the address where it answers."""

    def __init__(self, folder: Path) -> None:
        self.fabric, self.folder, self.clock = Fabric(), folder, SystemClock()
        (folder / "node.key").write_text("the node's key")
        (folder / "functions").mkdir()
        self.functions = self.make()
        self.server = make_server(self.functions, listen("127.0.0.1", 0), None, self.clock)

    def make(self) -> LocalFunctions:
        parts: Any = self.fabric
        return LocalFunctions(
            str(self.folder), "n1", parts, parts, parts, self.fabric.put_event, self.clock, "http://127.0.0.1:9466"
        )

    async def start(self) -> None:
        await self.functions.start()
        self.server.start()

    async def restart(self) -> None:
        await self.server.close()
        for task in self.functions.tasks:
            task.cancel()
        self.fabric.events.clear()
        self.functions = self.make()
        self.server = make_server(self.functions, listen("127.0.0.1", 0), None, self.clock)
        await self.start()

    async def list(self, *functions: LocalFunction) -> None:
        """As the gateway does; returns once each is looked after."""
        self.functions.take(ServeLocally(list(functions)))
        names = Counter(one.recipe.name for one in functions)
        await self.until(lambda: names <= Counter(name for name, _, _ in self.fabric.events))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                await asyncio.sleep(0.01)

    async def send(self, data: bytes) -> tuple[int, dict[str, Any], str]:
        """Status, body and head of what comes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.ports[0])
        writer.write(data)
        async with asyncio.timeout(60):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            body = await reader.readexactly(length)
        writer.close()
        return int(head.split()[1]), json.loads(body or b"{}"), head

    async def post(
        self, path: str = "/shop/label", token: str = TOKEN, body: bytes = b'{"n":1}', method: str = "POST"
    ) -> tuple[int, dict[str, Any], str]:
        head = f"{method} {path} HTTP/1.1\r\nHost: n1\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
        return await self.send(head.encode() + body)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.start()
    yield node
    await node.server.close()
    await node.functions.close()


async def test_a_caller_with_the_token_invokes_it_and_nobody_else_does(node: Node) -> None:
    await node.list(make_function(), make_function("others"))
    assert (
        "label",
        "ServedAtNode",
        "at http://127.0.0.1:9466/shop/label, also without the server",
    ) in node.fabric.events
    status, body, head = await node.post()
    assert (status, body) == (200, {"n": 1}) and "x-amzn-requestid" in head
    (call,) = node.fabric.invoked
    assert (call.digest, call.seconds, call.arn) == ("shop/label", 5.0, "arn:weft:lambda:weft:shop:function:label")
    wrong = [
        await node.post(token="no-token-of-anybody"),
        await node.post(token=""),
        await node.post("/others/label"),  # another project's function
        await node.post("/others/nothing"),
        await node.post("/nobody/label"),
    ]
    assert [status for status, _, _ in wrong] == [401] * 5
    assert {body["WeftReason"] for _, body, _ in wrong} == {"notAuthenticated"}
    assert len({body["Message"] for _, body, _ in wrong}) == 1, "a stranger learns which functions there are"
    status, body, _ = await node.post("/shop/other")
    assert (status, body["WeftReason"]) == (404, "functionNotHere") and "--local-node n1" in body["Message"]
    assert (await node.post(method="GET"))[0] == 405 and (await node.post("/shop"))[0] == 404
    status, body, _ = await node.post(body=b"{not json")
    assert (status, body["WeftReason"]) == (400, "invalidPayload")
    assert len(node.fabric.invoked) == 1


async def test_who_tries_many_wrong_tokens_is_slowed_down_and_others_may_go_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.list(make_function())
    found = [(await node.post(token=f"wrong-{number}"))[0] for number in range(25)]
    assert found[:10] == [401] * 10 and 429 in found
    assert (await node.post())[0] == 200
    monkeypatch.setattr(local_server, "MOST_A_SECOND", 1.0)
    await node.restart()
    await node.list(make_function())
    many = [await node.post() for _ in range(10)]
    status, body, head = many[-1]
    assert (status, body["WeftReason"]) == (429, "tooManyRequests") and "retry-after: 1" in head


async def test_what_runs_at_once_is_bounded_by_function_and_a_late_answer_frees_its_place(node: Node) -> None:
    await node.list(make_function(most=2))
    node.fabric.answer = lambda call: None
    calls = [asyncio.ensure_future(node.post()) for _ in range(2)]
    await node.until(lambda: len(node.fabric.waiting) == 2)
    status, body, _ = await node.post()
    assert (status, body["WeftReason"]) == (429, "tooManyRequests") and "2 of at most 2" in body["Message"]
    node.fabric.waiting[0].set_result(InvocationAnswer(node.fabric.invoked[0].id, b"1", error="Unhandled", seconds=1.0))
    node.fabric.waiting[1].set_result(
        InvocationRefused(node.fabric.invoked[1].id, "insufficientResources", "no memory")
    )
    first, second = await asyncio.gather(*calls)
    assert first[0] == 200 and "x-amz-function-error: Unhandled" in first[2]
    assert (second[0], second[1]["WeftReason"]) == (503, "insufficientResources") and "no memory" in second[1][
        "Message"
    ]
    node.fabric.answer = lambda call: InvocationAnswer(call.id, b"{}")
    assert (await node.post())[0] == 200


async def test_a_huge_or_slow_body_reaches_no_function(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.5)
    await node.list(make_function())
    head = f"POST /shop/label HTTP/1.1\r\nHost: n1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: "
    status, body, _ = await node.send(f"{head}7000000\r\n\r\n".encode())
    assert (status, body["WeftReason"]) == (413, "tooLarge")
    status, body, _ = await node.send(f"{head}100\r\n\r\n{{".encode())
    assert (status, body["WeftReason"]) == (408, "tooSlow")
    assert node.fabric.invoked == []


async def test_a_restarted_agent_serves_without_the_server_what_it_kept(node: Node) -> None:
    await node.list(make_function())
    kept = (node.folder / "functions" / "local.json").read_bytes()
    sealed = (node.folder / "function-secrets" / "uid-shop-label").read_bytes()
    assert TOKEN.encode() not in kept + sealed and b"secret-ticket" not in kept
    assert (await node.post())[0] == 200
    node.functions._usage.write()  # as every 5 s
    node.fabric.here = False
    await node.restart()
    assert node.fabric.learnt == {"shop/label"} and (await node.post())[0] == 200
    assert (await node.post("/shop/label", OTHER))[0] == 401
    node.functions.report_usage()
    assert node.fabric.events[-1] == (
        "label",
        "InvokedAtNode",
        "2 invocations at the node, 1.0 s of run time; 2 in all",
    )
    (node.folder / "functions" / "local.json").write_bytes(b"{damaged")
    await node.restart()
    assert (await node.post())[0] == 401  # none is known, and the agent lives


async def test_a_secret_that_may_not_be_kept_is_asked_for_again_and_what_lacks_says_so(node: Node) -> None:
    node.fabric.offline = False
    await node.list(make_function())
    assert "secret door is not --offline" in node.fabric.events[-1][2] and (await node.post())[0] == 200
    node.fabric.here = False
    await node.restart()
    await node.until(lambda: bool(node.fabric.events))
    assert node.fabric.events[-1][1:] == ("NotServedAtNode", "the server can't be reached")
    status, body, _ = await node.post()
    assert (status, body["WeftReason"]) == (503, "tokenNotKept") and "--offline" in body["Message"]
    node.fabric.here = True
    node.fabric.tokens["shop/label"] = "short"
    node.functions.take(ServeLocally([make_function()]))
    await node.until(lambda: "fewer than 16" in node.fabric.events[-1][2])
    assert (await node.post(token="short"))[0] == 503


async def test_a_function_whose_code_could_not_be_fetched_is_not_served_until_it_could(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    node.fabric.here = False
    await node.list(make_function())
    assert node.fabric.events[-1][1] == "NotServedAtNode" and "can't be fetched" in node.fabric.events[-1][2]
    node.fabric.here, node.fabric.missing = True, "bwrap is not installed"
    await node.until(lambda: node.fabric.events[-1][2] == "bwrap is not installed")
    node.fabric.missing = ""
    await node.until(lambda: node.fabric.events[-1][1] == "ServedAtNode")


async def test_what_the_server_lists_no_longer_is_gone_with_its_token_but_not_what_is_unready(node: Node) -> None:
    await node.list(make_function(), make_function(name="price"))
    node.functions.take(ServeLocally([], unready=["uid-shop-label"]))
    await node.until(lambda: not (node.folder / "function-secrets" / "uid-shop-price").exists())
    assert node.fabric.learnt == {"shop/label"} and (await node.post())[0] == 200
    assert (await node.post("/shop/price"))[0] == 404
    del node.fabric.tokens["shop/label"]  # somebody deleted the secret
    node.functions.take(ServeLocally([make_function()]))
    await node.until(lambda: not (node.folder / "function-secrets" / "uid-shop-label").exists())
    assert (await node.post())[0] == 503


def change(function: LocalFunction, secret: str = "door", **more: Any) -> LocalFunction:
    """The same function with another recipe."""
    recipe = msgspec.structs.replace(function.recipe, **more)
    return LocalFunction(function.uid, recipe, secret, function.most)


async def test_new_code_serves_once_all_of_it_is_here_and_until_then_the_former_does(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    await node.list(make_function())
    node.fabric.here = False  # the line is cut before the new code has come
    node.functions.take(ServeLocally([change(make_function(), digest="new")]))
    await node.until(lambda: "with its former code: the code can't be fetched" in node.fabric.events[-1][2])
    assert (await node.post())[0] == 200 and node.fabric.invoked[-1].digest == "shop/label"
    assert node.fabric.learnt == {"shop/label", "new"}, "its parts may be evicted while they come"
    await node.restart()
    assert (await node.post())[0] == 200 and node.fabric.invoked[-1].digest == "shop/label"
    node.fabric.here = True
    await node.list(change(make_function(), digest="new"))
    kept = node.folder / "functions" / "local.json"
    await node.until(lambda: node.fabric.learnt == {"new"} and b'"digest":"new"' in kept.read_bytes())
    node.fabric.here = False
    await node.restart()
    assert (await node.post())[0] == 200 and node.fabric.invoked[-1].digest == "new"


async def test_a_start_without_end_is_given_up_but_not_a_run_that_has_begun(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 0.05)
    await node.list(make_function(most=1))
    node.fabric.answer = lambda call: None
    status, body, _ = await node.post()
    assert (status, body["WeftReason"]) == (503, "startTimedOut")
    call = asyncio.ensure_future(node.post())
    await node.until(lambda: len(node.fabric.invoked) == 2)
    node.fabric.begun.add(node.fabric.invoked[1].id)
    await node.until(lambda: node.fabric.given_up.count(node.fabric.invoked[1].id) >= 2)
    node.fabric.waiting[1].set_result(InvocationAnswer(node.fabric.invoked[1].id, b"{}"))
    assert (await call)[0] == 200


async def test_a_function_whose_code_never_comes_holds_up_no_other_nor_a_token_nor_the_list(node: Node) -> None:
    slow = make_function(name="slow")
    node.fabric.tokens["shop/slow"] = OTHER
    node.fabric.slow.add("shop/slow")
    node.functions.take(ServeLocally([slow, make_function()]))
    await node.until(lambda: bool(node.fabric.events))
    assert node.fabric.events[0][:2] == ("label", "ServedAtNode")
    await node.until(lambda: (node.folder / "function-secrets" / "uid-shop-slow").exists())
    kept = (node.folder / "functions" / "local.json").read_bytes()
    assert b"uid-shop-slow" in kept
    node.functions.take(ServeLocally([slow]))
    await node.until(lambda: b"uid-shop-label" not in (node.folder / "functions" / "local.json").read_bytes())


async def test_a_replaced_token_opens_nothing_any_more_also_after_a_restart_without_the_server(node: Node) -> None:
    sealed = node.folder / "function-secrets" / "uid-shop-label"
    await node.list(make_function())
    node.fabric.tokens["shop/label"] = "short"
    node.functions.take(ServeLocally([make_function()]))
    await node.until(lambda: "fewer than 16" in node.fabric.events[-1][2] and not sealed.exists())
    node.fabric.tokens["shop/label"] = TOKEN
    await node.list(make_function())
    await node.until(sealed.exists)
    node.fabric.here = (
        False  # of the API server; the gateway tells that another secret opens it, whose code isn't ready
    )
    node.functions.take(ServeLocally([], ["uid-shop-label"], {"uid-shop-label": "gate"}))
    assert (await node.post())[0] == 503 and not sealed.exists()
    await node.restart()
    assert (await node.post())[0] == 503
    node.fabric.here, node.fabric.secret = True, "gate"
    node.fabric.tokens["shop/label"] = "the-token-of-the-gate"
    node.functions.take(ServeLocally([], ["uid-shop-label"], {"uid-shop-label": "gate"}))
    await node.until(sealed.exists)
    assert (await node.post(token="the-token-of-the-gate"))[0] == 200 and (await node.post())[0] == 401
    node.fabric.secret, node.fabric.tokens["shop/label"] = "hatch", "the-token-of-the-hatch"
    node.functions.take(ServeLocally([], ["uid-shop-label"]))  # of an older gateway, which names no secrets
    kept = node.folder / "functions" / "local.json"
    await node.until(lambda: b'"hatch"' in kept.read_bytes() and sealed.exists())
    assert (await node.post(token="the-token-of-the-hatch"))[0] == 200


async def test_it_says_only_of_what_is_kept_that_it_is_served_without_the_server(node: Node) -> None:
    def last() -> str:
        return node.fabric.events[-1][2]

    (node.folder / "node.key").rename(node.folder / "no.key")
    await node.list(make_function())
    assert "not after a restart without the server: the token in secret door can't be sealed" in last()
    (node.folder / "no.key").rename(node.folder / "node.key")
    await node.list(make_function())
    await node.until(lambda: last().endswith("also without the server"))
    kept = node.folder / "functions" / "local.json"
    kept.unlink()
    kept.mkdir()
    node.functions.take(ServeLocally([make_function()]))
    await node.until(lambda: "the node can't write its list" in last())
    kept.rmdir()
    node.functions.take(ServeLocally([change(make_function(), network="u1")]))
    await node.until(lambda: "its address in its network is the server's to give" in last())


async def test_a_server_that_does_not_understand_the_question_costs_no_token(node: Node) -> None:
    await node.list(make_function())
    del node.fabric.tokens["shop/label"]
    node.fabric.reason = "notFound"
    node.functions.take(ServeLocally([make_function()]))
    await node.until(lambda: node.fabric.events[-1][1] == "NotServedAtNode")
    assert (await node.post())[0] == 200 and (node.folder / "function-secrets" / "uid-shop-label").exists()


async def test_a_token_with_a_newline_and_other_letters_than_ascii_opens_its_function(node: Node) -> None:
    node.fabric.tokens["shop/label"] = "schlüssel-für-den-laden-à\r\n"
    await node.list(make_function())
    assert (await node.post(token="schlüssel-für-den-laden-à"))[0] == 200
    assert (await node.post(token="schlüssel-für-den-laden-"))[0] == 401


async def test_guesses_are_slowed_down_while_the_token_is_unknown_and_learn_no_cause(node: Node) -> None:
    node.fabric.offline = False
    del node.fabric.tokens["shop/label"]
    await node.list(make_function())
    found = [await node.post() for _ in range(25)]
    assert 429 in {status for status, _, _ in found}
    assert all("no such secret" not in body["Message"] for _, body, _ in found)


async def test_tokens_of_functions_that_no_list_has_are_removed_and_what_does_not_fit_is_said_once(node: Node) -> None:
    (node.folder / "function-secrets").mkdir()
    left = node.folder / "function-secrets" / "uid-of-a-former-one"
    left.write_bytes(b"sealed")
    beyond = [Ref("function", "late", "u9", "shop")]
    node.functions.take(ServeLocally([make_function()], beyond=beyond))
    await node.until(lambda: not left.exists())
    node.functions.take(ServeLocally([make_function()], beyond=beyond))
    assert [(name, reason) for name, reason, _ in node.fabric.events if name == "late"] == [("late", "NotServedAtNode")]


@pytest.mark.parametrize("damaged", [b"\xff\xfe", b'{"a": "\xff"}', b"[" * 100_000, b'{"a":' * 100_000, b"{", b"[]"])
async def test_damaged_files_cost_the_agent_no_start(node: Node, damaged: bytes) -> None:
    for name in ("local-usage.json", "local.json"):
        (node.folder / "functions" / name).write_bytes(damaged)
    with (node.folder / "functions" / "local-usage.json").open("r+b") as file:
        assert Usage(node.folder / "functions").take() == []
        file.truncate(1 << 40)  # a sparse file
    await node.restart()


def test_a_large_event_is_checked_without_objects_of_it() -> None:
    payload = b"[" + b"{}," * 2_000_000 + b"{}]"
    tracemalloc.start()
    try:
        check_payload(payload)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(payload)
    finally:
        tracemalloc.stop()
    for wrong in (b"{", b'"\xff"', b"[" * 100_000, b"1 2", b"", b"{a:1}"):
        with pytest.raises(InvalidInput):
            check_payload(wrong)


def test_counts_outlive_a_full_disk_and_of_too_many_functions_the_oldest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, label = Usage(tmp_path), Ref("function", "label", "u1", "shop")
    usage.count(label, failed=True, seconds=1.25)
    (tmp_path / "local-usage.json").mkdir()  # nothing can be written there
    usage.write()
    assert usage.changed and usage.take() == [
        (label, "1 invocation at the node, 1 with an error, 1.2 s of run time; 1 in all")
    ]
    (tmp_path / "local-usage.json").rmdir()
    monkeypatch.setattr("weft.agent.function.local.usage.MOST", 2)
    for name in ("u2", "u1", "u3"):
        usage.count(Ref("function", name, name, "shop"), failed=False, seconds=0.0)
    usage.write()
    assert [(ref.uid, text.rpartition("; ")[2]) for ref, text in Usage(tmp_path).take()] == [
        ("u1", "2 in all"),
        ("u3", "1 in all"),
    ]


@pytest.mark.parametrize(
    "place",
    [
        "9466",
        "shop:9466",
        "127.0.0.1:99999",
        "10.0.0.5:9466",
        "x@127.0.0.1:9466",
        "127.0.0.1:9466/abc",
        "127.0.0.1:9466?x",
        "127.0.0.1:0",
        "127.0.0.1:94\t66",
    ],
)
def test_an_address_without_tls_is_this_machine_s_alone(place: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_place(place, False)
    assert refused.value.field == "local_functions" and isinstance(refused.value, WeftError) and refused.value.hint
    assert read_place("10.0.0.5:9466", True) == ("10.0.0.5", 9466) and read_place("[::1]:1", False) == ("::1", 1)

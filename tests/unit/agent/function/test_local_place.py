"""A taken port, an address that isn't there yet, or a missing key costs a node the functions it serves itself, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.agent.function.local.functions import LocalFunctionEntry, LocalFunctions
from weft.contracts.clock import SystemClock
from weft.contracts.driver.function import Blob, Recipe
from weft.launch.agent import functions
from weft.launch.agent.main import make_metrics_place
from weft.objects.errors import InvalidInput
from weft.objects.identity import Ref
from weft.protocol.invocations import LocalFunction
from weft.serving import place as module
from weft.serving.place import DeferredServer
from weft.serving.server import listen


class Node:
    """Serves a function whose code and token are there; ``agent`` is what an agent has of it."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.events = SystemClock(), list[tuple[str, str]]()
        (folder / "node.key").write_text("the node's key")
        parts: Any = self
        self.functions = LocalFunctions(
            str(folder), "n1", parts, parts, parts, self.put_event, self.clock, "http://here"
        )
        recipe = Recipe(digest="d", function="f", project="shop", name="label", code=Blob("c0" * 32, 10), timeout=5.0)
        entry = LocalFunctionEntry(LocalFunction("uid", recipe, "door", 1), self.clock)
        entry.token, entry.has_code, entry.code_problem, entry.token_problem = b"0" * 32, True, "", ""
        self.functions._entries = {"shop/label": entry}
        self.agent: Any = self
        self.local = self.functions

    def find_missing(self, isolation: str) -> str:
        return ""

    def put_event(self, object: Ref, type_: str, reason: str, message: str) -> None:
        self.events.append((reason, message))

    def make_place(self, address: str, key: Path | None = None) -> DeferredServer:
        return functions.make_place(self.agent, address, key, self.clock)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_taken_port_is_said_and_tried_again_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    caplog.set_level(logging.INFO, logger="weft.serving")
    node = Node(tmp_path)
    other = listen("127.0.0.1", 0)
    other.listen()
    port = other.getsockname()[1]
    place = node.make_place(f"127.0.0.1:{port}")
    place.start()
    message = f"can't listen at 127.0.0.1 port {port}: Address already in use"
    assert node.events == [("NotServedAtNode", message)]
    await asyncio.sleep(0.1)  # some tries more, of which nothing is said
    other.close()
    await until(lambda: len(node.events) > 1)
    assert node.events[1:] == [("ServedAtNode", "at http://here/shop/label, also without the server")]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /shop/label HTTP/1.1\r\nHost: n1\r\nContent-Length: 0\r\n\r\n")
    async with asyncio.timeout(60):
        assert (await reader.readline()).split()[1] == b"401"
    writer.close()
    await place.close()
    told = [record.getMessage() for record in caplog.records]
    hint = f"ss -ltnp 'sport = :{port}' shows the program that holds the port"
    assert told == [
        f"functions at http://here can't be served yet: {message}; {hint}",
        "functions at http://here can be served now",
    ]


async def test_an_agent_without_the_address_or_the_key_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node, key = Node(tmp_path), tmp_path / "local.pem"
    await node.make_place("127.0.0.1:9466", key).close()
    assert node.events == [("NotServedAtNode", f"--local-functions-tls {key}: No such file or directory")]
    monkeypatch.setattr(functions, "_read_tls", lambda tls: None)
    await node.make_place("192.0.2.7:9466", key).close()
    assert node.events[1:] == [
        ("NotServedAtNode", "can't listen at 192.0.2.7 port 9466: Cannot assign requested address")
    ]
    assert "ip address shows" in caplog.text and "ss -ltnp" not in caplog.text


async def test_a_taken_port_for_metrics_keeps_no_agent_from_its_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listen("127.0.0.1", 0) as other:
        other.listen()
        host: Any = None
        agent: Any = SimpleNamespace(table=None, readiness=None)
        place = make_metrics_place(f"127.0.0.1:{other.getsockname()[1]}", host, agent, SystemClock())
        await place.close()
    assert "metrics at 127.0.0.1:" in caplog.text and "Address already in use" in caplog.text
    with pytest.raises(InvalidInput):
        make_metrics_place("foo", host, agent, SystemClock())


def test_what_can_not_be_a_place_is_refused(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for address in ("127.0.0.1", "nowhere:9466", "10.0.0.5:9466"):
        with pytest.raises(InvalidInput):
            node.make_place(address)
    assert not node.events

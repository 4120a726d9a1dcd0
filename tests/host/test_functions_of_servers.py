"""A function with real instances, invoked at the gateways of two servers over a real etcd, the first of which is killed."""

from __future__ import annotations

import json
import os
import sqlite3
import ssl
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.store.etcd_server import PROGRAM
from tests.scenario.server.servers_lab import Server, tried
from tests.scenario.server.test_server_log import until
from tests.scenario.several_servers_lab import FabricWithNodes, start_fabric

from weft.images.recipes import ensure_bundle

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)"),
]
CODE = """
import time
def handler(event, context):
    began = time.time()
    print("slept", event["seconds"])
    print("began", context.aws_request_id, began)
    time.sleep(event["seconds"])
    return {"began": began, "id": context.aws_request_id}
"""


@pytest.fixture(scope="module")
def started() -> Iterator[FabricWithNodes]:
    with start_fabric() as fabric:
        fabric.folder.chmod(0o755)  # users of instances go through it
        fabric.add_node("n1", fabric.first, "--functions", "auto")
        cache = Path(os.environ.get("WEFT_CACHE", ROOT / ".weft" / "cache"))
        fabric.weft(fabric.first, "image", "add", "python3-11", str(ensure_bundle("python3-11", cache, lambda _: None)))
        (fabric.folder / "code").mkdir()
        (fabric.folder / "code" / "app.py").write_text(CODE)
        words = ["--code", f"{fabric.folder}/code", "--handler", "app.handler", "--isolation", "process"]
        fabric.weft(fabric.first, "function", "create", "f", *words, "--timeout", "60s", seconds=300)
        yield fabric


@pytest.fixture
def fabric(started: FabricWithNodes) -> FabricWithNodes:
    """With both servers."""
    started.revive()
    until(lambda: tried(lambda: invoke(started, started.first, 0.0)))
    return started


def invoke(fabric: FabricWithNodes, server: Server, seconds: float) -> Any:
    return json.loads(fabric.weft(server, "function", "invoke", "f", "--data", json.dumps({"seconds": seconds})))


def post(fabric: FabricWithNodes, server: Server, seconds: float, headers: dict[str, str]) -> Any:
    """An invocation over Lambda's API; its answer."""
    place = f"https://{server.functions}/2015-03-31/functions/f/invocations"
    headers = {"Authorization": f"Bearer {fabric.context.token}", **headers}
    tls = ssl.create_default_context(cadata=fabric.context.ca)
    tls.check_hostname = False
    asked = urllib.request.Request(place, json.dumps({"seconds": seconds}).encode(), headers, method="POST")
    with urllib.request.urlopen(asked, context=tls, timeout=60) as answer:
        return answer.headers, answer.read()


def repeat(fabric: FabricWithNodes, server: Server, call: str, attempt: int) -> Any:
    """The answer to a call of five seconds, as an SDK sends it."""
    headers = {"amz-sdk-invocation-id": call, "amz-sdk-request": f"attempt={attempt}; max=3"}
    return json.loads(post(fabric, server, 5.0, headers)[1])


def queue(fabric: FabricWithNodes, server: Server, seconds: float) -> str:
    """The id of an asynchronous invocation that was acknowledged."""
    return str(post(fabric, server, seconds, {"X-Amz-Invocation-Type": "Event"})[0]["x-amzn-requestid"])


def count_runs(fabric: FabricWithNodes) -> Counter[str]:
    """How often each invocation began, by what the gateways wrote down of what was printed."""
    lines = {
        line[line.index("began ") :]
        for server in (fabric.first, fabric.second)
        for log in (server.state / "gateway" / "logs").glob("*/current.log")
        for line in log.read_text().splitlines()
        if "began " in line
    }
    return Counter(line.split()[1] for line in lines)


def count_waiting(server: Server) -> int:
    return read_count(server, "SELECT COUNT(*) FROM event")


def count_taken(server: Server) -> int:
    """How many events of others its gateway took over."""
    return read_count(server, "SELECT COUNT(*) FROM taken")


def read_count(server: Server, words: str) -> int:
    with closing(sqlite3.connect(server.state / "gateway" / "events.db")) as db:
        (count,) = db.execute(words).fetchone()
    return int(count)


def test_a_function_runs_at_either_gateway_and_a_repeated_call_once_when_the_first_is_killed(
    fabric: FabricWithNodes,
) -> None:
    for server in (fabric.second, fabric.first):
        assert invoke(fabric, server, 0.0)["id"]
        assert "slept 0.0" in fabric.weft(server, "function", "logs", "f")
    call, failed = str(uuid.uuid4()), threading.Event()

    def begin() -> None:
        with pytest.raises(OSError):
            repeat(fabric, fabric.first, call, 1)
        failed.set()

    caller = threading.Thread(target=begin)
    caller.start()
    while "slept 5.0" not in fabric.weft(fabric.first, "function", "logs", "f"):
        assert caller.is_alive()
    killed_at = time.time()
    fabric.first.kill()
    caller.join()
    assert failed.is_set()
    answer = repeat(fabric, fabric.second, call, 2)
    assert answer["began"] < killed_at  # it ran once, and its answer came to the gateway that was asked again
    for server in (fabric.second, fabric.first):
        assert invoke(fabric, server, 0.0)["began"] > killed_at


@pytest.mark.long  # tests/scenario/gateway/test_queued_copies.py shows it in one process
def test_queued_events_run_at_the_other_server_when_theirs_is_killed_and_not_again_when_it_returns(
    fabric: FabricWithNodes,
) -> None:
    invoke(fabric, fabric.second, 0.0)
    invoke(fabric, fabric.first, 0.0)
    ids = {queue(fabric, fabric.first, 1.0) for _ in range(30)}
    fabric.first.kill()
    assert not ids <= count_runs(fabric).keys()
    until(lambda: count_taken(fabric.second) and not count_waiting(fabric.second), 90)
    ran = count_runs(fabric)
    fabric.revive()
    until(lambda: tried(lambda: invoke(fabric, fabric.first, 0.0)))
    new = queue(fabric, fabric.first, 0.0)
    until(lambda: new in count_runs(fabric) and not count_waiting(fabric.first))
    until(lambda: ids <= count_runs(fabric).keys())  # what ran while its gateway was gone was printed there
    now = count_runs(fabric)
    assert {id: now[id] for id in ids & ran.keys()} == {id: ran[id] for id in ids & ran.keys()}

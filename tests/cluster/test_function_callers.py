"""Functions on a real cluster as programs call them: boto3 with what the commands print, HTTP, events over a killed gateway."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import signal
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import msgspec
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.cluster.cluster import Cluster, until
from tests.long import mark_long
from weft.contracts.clock import SystemClock
from weft.contracts.store import Put
from weft.store.remote import RemoteStore

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]  # the base is built once, from packages
CODE = """
import time
def handler(event, context):
    if "requestContext" in event and "http" in event["requestContext"]:
        return {"statusCode": 201, "headers": {"x-path": event["rawPath"]}, "body": event.get("body", "")}
    began = time.time()
    print("RUN", began, event["n"], flush=True)
    time.sleep(event.get("seconds", 0))
    print("END", began, event["n"], flush=True)
    custom = context.client_context and context.client_context.custom
    return {"n": event["n"], "custom": custom, "id": context.aws_request_id, "arn": context.invoked_function_arn, "began": began}
"""
NUMBERS = itertools.count(100)


@pytest.fixture(scope="module")
def called(cluster: Cluster) -> Iterator[Cluster]:
    folder = cluster.folder / "code" / "called"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(CODE)
    wish = ["--code", str(folder), "--handler", "app.handler", "--isolation", "process", "--http", "token"]
    cluster.ok("function", "create", "called", *wish, "--retries", "0", timeout=600)
    yield cluster
    cluster.run("delete", "function/called", "--yes")


def variables(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def connect(cluster: Cluster, key: dict[str, str], **config: Any) -> Any:
    """A client that knows what the commands print, and nothing else."""
    where = variables(cluster.ok("function", "endpoint", "-o", "env"))
    return boto3.client(
        "lambda",
        endpoint_url=where["AWS_ENDPOINT_URL_LAMBDA"],
        region_name=where["AWS_DEFAULT_REGION"],
        verify=where["AWS_CA_BUNDLE"],
        aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
        config=Config(**config),
    )


def ran(cluster: Cluster, word: str = "RUN") -> list[int]:
    """Of each run that has printed ``word`` its number; a line that is there twice is of one run."""
    lines = re.findall(rf" {word} (\S+) (\d+)$", cluster.ok("function", "logs", "called"), re.MULTILINE)
    return sorted(int(n) for _, n in set(lines))


def new_numbers(many: int = 1) -> range:
    """Numbers of runs that no other test, and no first try of this one, has asked for."""
    first = next(NUMBERS)
    for _ in range(many - 1):
        next(NUMBERS)
    return range(first, first + many)


def test_boto3_invokes_with_a_key_until_that_is_deleted(called: Cluster) -> None:
    key = variables(called.ok("token", "create", "ci", "--access-key"))
    client = connect(called, key)
    context = base64.b64encode('{"custom": {"k": "Zoë"}}'.encode()).decode()
    told = client.invoke(FunctionName="called", Payload=b'{"n": 1}', LogType="Tail", ClientContext=context)
    answer = json.loads(told["Payload"].read())
    assert answer["custom"] == {"k": "Zoë"}
    typed = called.ok("function", "invoke", "called", "-d", '{"n": 3}', "--client-context", '{"custom": {"k": "ö"}}')
    assert json.loads(typed)["custom"] == {"k": "ö"}
    assert answer["n"] == 1 and answer["id"] == told["ResponseMetadata"]["RequestId"] and told["LogResult"]
    assert answer["arn"] == "arn:weft:lambda:weft:default:function:called"
    failed = client.invoke(FunctionName="called", Payload=b"{}")
    assert failed["FunctionError"] == "Unhandled" and json.loads(failed["Payload"].read())["errorType"] == "KeyError"
    client.get_waiter("function_active_v2").wait(FunctionName="called")
    forged = connect(called, key | {"AWS_SECRET_ACCESS_KEY": "x" * 40})
    with pytest.raises(ClientError, match="InvalidSignatureException"):
        forged.invoke(FunctionName="called")
    called.ok("token", "delete", "ci", "--yes")

    def is_refused() -> bool:
        try:
            client.invoke(FunctionName="called", Payload=b'{"n": 2}')
        except ClientError as problem:
            return problem.response["Error"]["Code"] == "UnrecognizedClientException"
        return False

    until(is_refused)


def test_its_own_address_asks_for_a_token(called: Cluster) -> None:
    url = called.ok("function", "endpoint", "called").strip()
    ca = variables(called.ok("function", "endpoint", "-o", "env"))["AWS_CA_BUNDLE"]
    tls = ssl.create_default_context(cafile=ca)
    token = called.ok("token", "create", "--role", "invoker").strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "text/plain"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}a/b", b"hello", headers), context=tls) as answer:
        assert (answer.status, answer.headers["x-path"], answer.read()) == (201, "/a/b", b"hello")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, context=tls)
    assert refused.value.code == 403


@pytest.fixture(scope="module")
def patients_key(called: Cluster) -> dict[str, str]:
    return variables(called.ok("token", "create", "patient", "--access-key"))


@pytest.fixture
def patient(called: Cluster, patients_key: dict[str, str]) -> Any:
    """A client that tries again until the next gateway answers."""
    return connect(called, patients_key, retries={"max_attempts": 10, "mode": "standard"})


@pytest.fixture
def await_gateway(called: Cluster, patients_key: dict[str, str]) -> Callable[[], None]:
    """Returns once a gateway answers: one that is killed again and again comes back more slowly each time."""
    client = connect(called, patients_key, retries={"total_max_attempts": 1})  # its pauses between tries are long

    def answers() -> bool:
        try:
            return client.invoke(FunctionName="called", Payload=b'{"n": 0}')["StatusCode"] == 200
        except (BotoCoreError, ClientError):
            return False

    return lambda: until(answers)


async def set_back_schedules(cluster: Cluster) -> int:
    """Have each schedule's last run an hour ago, as if there had been no gateway since; how many there are."""
    store = RemoteStore(cluster.state / "server" / "store.sock", SystemClock())
    await store.open()
    try:
        found = (await store.list("/-schedule/")).entries
        for entry in found:
            last = msgspec.json.decode(entry.value, type=float)
            await store.commit([Put(entry.key, msgspec.json.encode(last - 3600))])
        return len(found)
    finally:
        await store.close()


def test_a_schedule_fires_also_for_a_time_when_there_was_no_gateway(
    called: Cluster, await_gateway: Callable[[], None]
) -> None:
    (n,) = new_numbers()
    called.ok("function", "set", "called", "--schedule", f'* * * * *;input={{"n": {n}}}')
    until(lambda: asyncio.run(set_back_schedules(called)) == 1)
    for pid in called.pids("weft server gateway"):
        os.kill(pid, signal.SIGKILL)
    await_gateway()
    until(lambda: n in ran(called))
    called.ok("function", "set", "called", "--schedule", "")


def test_events_that_were_accepted_run_although_the_gateway_is_killed(called: Cluster) -> None:
    client = connect(
        called, variables(called.ok("token", "create", "events", "--access-key")), retries={"max_attempts": 1}
    )
    accepted: list[int] = []
    for at, n in enumerate(new_numbers(60)):
        if at == 20:
            for pid in called.pids("weft server gateway"):
                os.kill(pid, signal.SIGKILL)
        try:
            client.invoke(FunctionName="called", InvocationType="Event", Payload=json.dumps({"n": n}).encode())
            accepted.append(n)
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    assert len(accepted) > 30
    until(lambda: set(accepted) <= set(ran(called)))


# while it runs, and about when it ends
@pytest.mark.parametrize("after", mark_long((0.1, 0.45, 0.5, 0.52, 1.0), 0.1, 0.45, 0.52, 1.0))
def test_a_call_whose_gateway_is_killed_runs_once_is_answered_by_the_next_and_has_printed_all(
    called: Cluster, patient: Any, await_gateway: Callable[[], None], after: float
) -> None:
    (n,) = new_numbers()
    await_gateway()

    def kill() -> None:
        time.sleep(after)
        for pid in called.pids("weft server gateway"):
            os.kill(pid, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    told = patient.invoke(FunctionName="called", Payload=json.dumps({"n": n, "seconds": 0.5}).encode())
    killing.join()
    answer = json.loads(told["Payload"].read())
    assert answer["n"] == n and answer["id"] == told["ResponseMetadata"]["RequestId"]
    await_gateway()  # the next one
    until(lambda: n in ran(called, "END"))  # which may be printed while there is none
    assert (ran(called).count(n), ran(called, "END").count(n)) == (1, 1)


def test_what_failed_for_good_is_listed_run_again_and_let_go_of(
    called: Cluster, await_gateway: Callable[[], None]
) -> None:
    await_gateway()
    called.ok("function", "dead-letters", "called", "--purge")  # a first try's
    id = called.ok("function", "invoke", "called", "--async", "--data", '{"m": 1}').strip()
    until(lambda: id in called.ok("function", "dead-letters", "called"))
    (letter,) = called.json("function", "dead-letters", "called")["items"]
    assert (letter["id"], letter["error_type"], letter["payload"]) == (id, "KeyError", '{"m": 1}')
    assert "1 run again" in called.ok("function", "dead-letters", "called", "--redrive")
    until(lambda: id in called.ok("function", "dead-letters", "called"))
    assert "1 purged" in called.ok("function", "dead-letters", "called", "--purge")
    assert called.json("function", "dead-letters", "called")["items"] == []

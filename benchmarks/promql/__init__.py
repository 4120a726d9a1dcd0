"""What queries of the history of metrics take: through the API, in turn with VictoriaMetrics asked directly.

``weft server`` as a person runs it, with the VictoriaMetrics that it keeps; the samples of 2,000 guests over an hour are sent
there as the controllers send theirs. Caches of answers are as they come: each query asks for another moment."""

from __future__ import annotations

import asyncio
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

from benchmarks.measurement import Figure, Measurement, spread
from weft.client import Client, find_context
from weft.contracts.clock import SystemClock
from weft.contracts.http.connection import HttpConnection, read_reply
from weft.objects.errors import WeftError
from weft.telemetry.metrics.database import Database, connect, find_database
from weft.telemetry.metrics.sample import Sample
from weft.telemetry.metrics.sender import Sender, split_samples

GUESTS, HOUR, INTERVAL, ROUNDS = 2_000, 3_600, 10, 15
GOAL_MS, GOAL_RATIO = 150.0, 1.3
PORTS = (29_443, 29_444, 29_445)
QUERIES = (
    ("topk(10, avg_over_time(…[1h]))", "query", "topk(10, avg_over_time(weft_guest_cpu_cores[1h]))", True),
    ("topk(10, …) over 1 h, step 60 s", "query_range", "topk(10, weft_guest_cpu_cores)", True),
    ("sum by (project) over 1 h, step 60 s", "query_range", "sum by (project) (weft_guest_cpu_cores)", False),
    ("one guest over 1 h, step 10 s", "query_range", 'weft_guest_cpu_cores{name="g7"}', False),
)


def measure() -> Measurement:
    with tempfile.TemporaryDirectory(prefix="weft-promql-") as folder:
        state = Path(folder) / "server"
        names = ("listen", "gateway", "functions")
        words = [f"--{name}=127.0.0.1:{port}" for name, port in zip(names, PORTS, strict=True)]
        weft = str(Path(sys.executable).with_name("weft"))
        server = subprocess.Popen([weft, "server", "--state", str(state), *words], stderr=subprocess.DEVNULL)
        try:
            client = await_server(state, server)
            database = find_database(state, None)
            fill(database, time.time())
            figures = [compare(client, database, *query) for query in QUERIES]
            client.close()
        finally:
            server.terminate()
            server.wait()
    summary = (
        f"PromQL over {GUESTS:,} series of an hour, a sample every {INTERVAL} s, through the API and asked directly."
    )
    return Measurement("promql", summary, figures)


def await_server(state: Path, server: subprocess.Popen[bytes]) -> Client:
    while True:
        try:
            find_database(state, None)
            client = Client(find_context(str(state / "context.json")), patience_seconds=30)
            client.http.request("GET", "/v1/healthz")
            return client
        except WeftError:
            if server.poll() is not None:
                raise
            time.sleep(0.1)


def fill(database: Database, now: float) -> None:
    clock = SystemClock()

    async def send() -> None:
        sender = Sender(lambda: database, clock, most_kept=10**7)
        sending = asyncio.create_task(sender.run())
        for at in range(int(now) - HOUR, int(now), INTERVAL):
            samples = [
                Sample("weft_guest_cpu_cores", label(number), at * 1000, (at * (number + 7)) % 997 / 250)
                for number in range(GUESTS)
            ]
            sender.put(split_samples(samples))
        while sender.kept:
            await asyncio.sleep(0.05)
        sending.cancel()

    asyncio.run(send())
    ask(database, "/internal/force_flush", {})


def label(number: int) -> tuple[tuple[str, str], ...]:
    return (("project", f"p{number % 20}"), ("kind", "vm"), ("name", f"g{number}"), ("node", f"n{number % 50}"))


def ask(database: Database, path: str, parameters: dict[str, str]) -> bytes:
    connection = CONNECTIONS.get(database.url)
    if connection is None:
        connection = CONNECTIONS[database.url] = connect(database, SystemClock())
    headers = {"Authorization": database.authorization, "Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode(parameters).encode()
    response = connection.begin("POST", database.url + path, body, headers, ends=math.inf, most_bytes=MOST_BYTES)
    return read_reply(response, MOST_BYTES).body


CONNECTIONS: dict[str, HttpConnection] = {}
MOST_BYTES = 1 << 30


def compare(client: Client, database: Database, what: str, path: str, query: str, has_goal: bool) -> Figure:
    took: dict[str, list[float]] = {"api": [], "direct": []}
    answers: dict[str, int] = {}
    for turn in range(ROUNDS + 2):
        for who in ("api", "direct"):
            moment = time.time() - 1.5 - turn * 0.01
            given = {"query": query}
            given |= {"time": f"{moment:.3f}", "nocache": "1"} if path == "query" else span(moment, query)
            ways: dict[str, Callable[[], bytes]] = {
                "api": lambda given=given: client.http.request("GET", f"/api/v1/{path}?{urlencode(given)}").body,  # type: ignore[misc]
                "direct": lambda given=given: ask(database, f"/api/v1/{path}", given),  # type: ignore[misc]
            }
            began = time.perf_counter()
            body = ways[who]()
            if turn >= 2:
                took[who].append(time.perf_counter() - began)
            answers[who] = len(body)
            assert b'"status":"success"' in body[:60], body[:300]
    mid, peer = (statistics.median(took[who]) for who in ("api", "direct"))
    ratio = mid / peer
    kept = (mid * 1000 <= GOAL_MS and ratio <= GOAL_RATIO) if has_goal else ratio <= GOAL_RATIO or mid - peer <= 0.003
    goal = f"≤ {GOAL_MS:g} ms, ≤ {GOAL_RATIO:g}×" if has_goal else f"≤ {GOAL_RATIO:g}×, or + 3 ms"
    return Figure(
        f"{what}, {answers['api'] / 1000:.0f} kB",
        spread(took["api"], digits=1),
        f"directly {spread(took['direct'], digits=1)}",
        f"{ratio:.2f}×",
        goal,
        kept,
    )


def span(moment: float, query: str) -> dict[str, str]:
    step = "10" if "name=" in query else "60"
    return {"start": f"{moment - HOUR + 60:.3f}", "end": f"{moment:.3f}", "step": step}

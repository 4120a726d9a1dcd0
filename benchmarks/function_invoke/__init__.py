"""What an invocation costs beyond its code: through gateway and node of the local cluster, over HTTPS as a caller sends it, against
the same runtime in the same kind of instance called from the next process, over its Runtime API with nothing in between."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from tests.host.function_lab import FunctionLab

from benchmarks.connection import Connection
from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.client.context import Context
from weft.contracts.clock import SystemClock
from weft.contracts.driver.function import Recipe
from weft.drivers.function.process.driver import ProcessInstances
from weft.protocol.invocations import Acknowledge, FromAgent, InvocationAnswer, Invoke

WEFT = str(Path(sys.executable).parent / "weft")
CODE = "def handler(event, context):\n    return event\n"
ROUNDS, CALLS = 5, 200
AT_ONCE, SECONDS = 16, 3.0
COLD = 10
PATIENCE = 1.0  # keep_alive of the function whose every call is to be cold
PAYLOAD = b'{"n":1}'
Call = Callable[[], Awaitable[None]]


def weft(*argv: str) -> str:
    done = subprocess.run([WEFT, *argv], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"weft {' '.join(argv)}: {done.stderr[-400:]}")
    return done.stdout


class Direct:
    """Instances of the runtime in this process's hands."""

    def __init__(self, lab: FunctionLab, recipe: Recipe) -> None:
        self._lab, self._recipe = lab, recipe
        self._waiting: dict[str, asyncio.Future[InvocationAnswer]] = {}
        lab.functions.connect(self._hear)

    async def call(self) -> None:
        id = str(uuid.uuid4())
        future = self._waiting[id] = asyncio.get_running_loop().create_future()
        self._lab.functions.take(Invoke(id, self._recipe.digest, PAYLOAD, 30.0))
        answer = await future
        assert answer.payload == b'{"n": 1}', answer

    def _hear(self, message: FromAgent) -> None:
        if isinstance(message, InvocationAnswer):
            self._waiting.pop(message.id).set_result(message)
            self._lab.functions.take(Acknowledge(message.id))


@asynccontextmanager
async def direct() -> AsyncIterator[Direct]:
    with tempfile.TemporaryDirectory() as folder:
        lab = FunctionLab(Path(folder), lambda host: ProcessInstances(host, SystemClock()))
        await lab.open()
        try:
            recipe = lab.recipe({"app.py": CODE}, memory=128 << 20)
            await lab.prepare(recipe)
            yield Direct(lab, recipe)
        finally:
            await lab.close()
            shutil.rmtree(lab.run_dir)


class Through:
    """Kept connections to the gateway."""

    def __init__(self, context: Context, name: str) -> None:
        self._context, self._path = context, f"/2015-03-31/functions/{name}/invocations"
        self._free: list[Connection] = []

    async def call(self) -> None:
        connection = self._free.pop() if self._free else await Connection.open(self._context)
        status, body = await connection.request("POST", self._path, PAYLOAD)
        assert (status, body) == (200, b'{"n": 1}'), (status, body)
        self._free.append(connection)


async def time_each(call: Call, count: int) -> list[float]:
    """How long each of these took, one after the other."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        found.append(time.perf_counter() - began)
    return found


async def rate(call: Call, at_once: int, seconds: float) -> float:
    """How many a second, so many at once."""
    ends_at, count = time.perf_counter() + seconds, 0

    async def go_on() -> None:
        nonlocal count
        while time.perf_counter() < ends_at:
            await call()
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(go_on() for _ in range(at_once)))
    return count / (time.perf_counter() - began)


def read_context() -> Context:
    context = msgspec.json.decode((ROOT / ".weft" / "context.json").read_bytes(), type=Context)
    return msgspec.structs.replace(context, server=weft("function", "endpoint").split()[0])


async def run() -> list[Figure]:
    context = read_context()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.py").write_text(CODE)
        create = ["--code", folder, "--handler", "app.handler", "--isolation", "process", "--memory", "128M"]
        weft("function", "create", "bench-warm", *create)
        weft("function", "create", "bench-cold", *create, "--keep-alive", f"{PATIENCE:g}s")
    try:
        warm, cold = Through(context, "bench-warm"), Through(context, "bench-cold")
        ours: list[float] = []
        peers: list[float] = []
        rates: list[tuple[float, float]] = []
        async with direct() as peer:
            await time_each(warm.call, 20)
            await time_each(peer.call, 20)
            for _ in range(ROUNDS):
                ours += await time_each(warm.call, CALLS)
                peers += await time_each(peer.call, CALLS)
            await rate(warm.call, AT_ONCE, 1.0)
            await rate(peer.call, AT_ONCE, 1.0)
            rates += [
                (await rate(warm.call, AT_ONCE, SECONDS), await rate(peer.call, AT_ONCE, SECONDS)) for _ in range(3)
            ]
        colds = []
        for _ in range(COLD):
            await asyncio.sleep(PATIENCE + 0.5)
            colds += await time_each(cold.call, 1)
        told = json.loads(weft("function", "metrics", "bench-cold", "-o", "json"))
    finally:
        for name in ("bench-warm", "bench-cold"):
            weft("delete", f"function/{name}", "--yes")
    more = statistics.median(ours) - statistics.median(peers)
    each, other = (statistics.median(one) for one in zip(*rates, strict=True))
    return [
        Figure(
            "a warm invocation, process",
            spread(ours, digits=2),
            "the runtime called directly " + spread(peers, digits=2),
            f"+{more * 1000:.2f} ms",
            "≤ +1 ms p50",
            more <= 0.001,
        ),
        Figure(
            f"warm invocations a second, {AT_ONCE} at once",
            f"{each:.0f}/s",
            f"called directly {other:.0f}/s",
            f"{each / other:.2f}×",
            "≥ 1,000/s",
            each >= 1000,
        ),
        Figure(
            f"a cold invocation, process ({told['starts'].get('cold', 0)} of {COLD} were)",
            spread(colds),
            f"of this its start {told['init']['p50']:.0f} ms",
            "–",
            "≤ 200 ms",
            statistics.median(colds) <= 0.2,
        ),
    ]


def measure() -> Measurement:
    return Measurement(
        "function_invoke",
        "A handler in Python that returns its event. Through: HTTPS from here to the gateway, TLS to a node of the local cluster, "
        "its instance, and back, on kept connections; in turn with the same runtime in an instance of this process.",
        asyncio.run(run()),
    )

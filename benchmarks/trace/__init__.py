"""What tracing costs: CPU time of requests in the API server's thread, with and without, round by round; and of an invocation's
part in gateway and agent, by itself."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from benchmarks.api_cpu import CLIENTS, TURNS, Rig
from benchmarks.measurement import Figure, Measurement
from weft.agent.trace.invocations import ServedTraces
from weft.api.request.trace import RequestTraces
from weft.contracts.clock import SystemClock
from weft.contracts.trace.span import Tracer
from weft.gateway.function.invocation.traces import InvocationTraces
from weft.protocol.invocations import InvocationAnswer, Invoke
from weft.telemetry.spool import Spool

ROUNDS, CALLS = 300, 50_000
SAMPLE = 0.01
INVOCATION_US = (
    425.0  # of CPU for a warm one, by function_invoke: 2,350 a second on two cores' clients, gateway and agent
)
GOAL_SHARE, GOAL_US = 1.02, 10.0


async def time_requests(folder: Path) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of each request, by what it does, how it is traced, and round."""
    rig = Rig()
    await rig.open(folder)
    tracer = Tracer("api", SystemClock(), Spool(folder / "spans").put)
    ways = {"off": None, "1 %": RequestTraces(tracer, SAMPLE)}
    taken: dict[str, dict[str, list[float]]] = {}
    for _ in range(ROUNDS):
        for what, work in (("a read", rig.read), ("an update, always traced", rig.update)):
            for way, traces in ways.items():
                rig.context.traces = traces
                taken.setdefault(what, {}).setdefault(way, []).append(await rig.time(work, TURNS))
    await rig.close()
    return taken


def time_invocation(folder: Path, sample: float) -> float:
    """Seconds that gateway and agent spend on its trace."""
    gateway = InvocationTraces(Tracer("gateway", SystemClock(), Spool(folder / "gateway").put), sample)
    agent = ServedTraces(Tracer("node/n1", SystemClock(), Spool(folder / "agent").put))
    call = Invoke("id", "digest", b"{}", 3.0, "arn:weft:lambda:weft:default:function:echo")
    answer = InvocationAnswer("id", b"{}", seconds=0.001)

    def invoke() -> None:
        trace = gateway.begin("", "function/default/echo")
        if trace is None:
            return
        trace.note_sent("n1")
        agent.begin(Invoke("id", "digest", b"{}", 3.0, call.arn, traceparent=trace.carried))
        agent.end(answer)
        trace.end("", "warm")

    return time_each(invoke, CALLS if sample < 1 else CALLS // 25)


def time_each(work: Callable[[], object], count: int) -> float:
    began = time.thread_time()
    for _ in range(count):
        work()
    return (time.thread_time() - began) / count


def measure() -> Measurement:
    with tempfile.TemporaryDirectory() as name:
        logging.disable()
        folder = Path(name)
        requests = uvloop.run(time_requests(folder))
        by_sample = {sample: time_invocation(folder, sample) * 1e6 for sample in (0.0, SAMPLE, 1.0)}
    figures = []
    for what, ways in requests.items():
        off, on = min(ways["off"]), min(ways["1 %"])
        ratio = statistics.median(with_ / without for without, with_ in zip(ways["off"], ways["1 %"], strict=True))
        always = "always" in what
        figures.append(
            Figure(
                f"CPU of {what}",
                f"{on * 1e6:.1f} µs",
                f"tracing off {off * 1e6:.1f} µs",
                f"{ratio:.3f}× (median of {ROUNDS} rounds)",
                "–" if always else f"≤ {GOAL_SHARE}×",
                None if always else ratio <= GOAL_SHARE,
            )
        )
    share = 1 + by_sample[SAMPLE] / INVOCATION_US
    figures += [
        Figure(
            "CPU of a warm invocation's trace, of 1 %, in gateway and agent",
            f"{by_sample[SAMPLE]:.2f} µs on average",
            f"a warm invocation {INVOCATION_US:g} µs",
            f"{share:.3f}×",
            f"≤ {GOAL_SHARE}×",
            share <= GOAL_SHARE,
        ),
        Figure(
            "the same for one that isn't sampled",
            f"{by_sample[0.0]:.2f} µs",
            goal=f"≤ {GOAL_US:g} µs",
            kept=by_sample[0.0] <= GOAL_US,
        ),
        Figure("the same for one that is: six spans", f"{by_sample[1.0]:.1f} µs"),
    ]
    return Measurement(
        "trace",
        f"What tracing costs. Requests: {CLIENTS} at once, over the store in memory, with and without in turn; spans are written to"
        " files.",
        figures,
    )

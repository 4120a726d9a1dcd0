"""What a network costs a function: the same one with and without, warm and cold, as a process and in a machine, in turn."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path

from benchmarks.function_invoke import CODE, PATIENCE, Through, read_context, time_each, weft
from benchmarks.measurement import Figure, Measurement, spread

ROUNDS, CALLS, COLD = 5, 100, 10
NETWORK = "bench-net"
ISOLATIONS = {"process": "a process", "vm": "a machine of its own"}
WARM_RATIO, COLD_RATIO = 1.1, 1.5


def name_of(isolation: str, start: str, *, inside: bool) -> str:
    return f"bench-{isolation}-{start}-{'in' if inside else 'out'}"


async def compare(isolation: str) -> list[Figure]:
    """A row for warm calls and one for cold."""
    context = read_context()
    calls = {
        (start, inside): Through(context, name_of(isolation, start, inside=inside)).call
        for start in ("warm", "cold")
        for inside in (True, False)
    }
    found: dict[tuple[str, bool], list[float]] = {key: [] for key in calls}
    for call in calls.values():
        await time_each(call, 1)  # node and network are there from here on
    for _ in range(ROUNDS):
        for inside in (True, False):
            found["warm", inside] += await time_each(calls["warm", inside], CALLS)
    for _ in range(COLD):
        await asyncio.sleep(PATIENCE + 0.5)
        for inside in (True, False):
            found["cold", inside] += await time_each(calls["cold", inside], 1)
    figures = []
    for start, most, digits in (("warm", WARM_RATIO, 2), ("cold", COLD_RATIO, 0)):
        within, without = found[start, True], found[start, False]
        ratio = statistics.median(within) / statistics.median(without)
        figures.append(
            Figure(
                f"a {start} invocation in a network, {ISOLATIONS[isolation]}",
                spread(within, digits=digits),
                f"without one {spread(without, digits=digits)}",
                f"{ratio:.2f}×",
                f"≤ {most:g}×",
                ratio <= most,
            )
        )
    return figures


async def run() -> list[Figure]:
    names = [
        name_of(isolation, start, inside=inside)
        for isolation in ISOLATIONS
        for start in ("warm", "cold")
        for inside in (True, False)
    ]
    weft("network", "create", NETWORK, "--cidr", "10.97.0.0/24")
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "app.py").write_text(CODE)
            for name in names:
                _, isolation, start, place = name.split("-")
                wish = ["--code", folder, "--handler", "app.handler", "--isolation", isolation, "--memory", "128M"]
                wish += ["--network", NETWORK] if place == "in" else []
                wish += ["--keep-alive", f"{PATIENCE:g}s", "--ready", "0"] if start == "cold" else []
                weft("function", "create", name, *wish)
        return [figure for isolation in ISOLATIONS for figure in await compare(isolation)]
    finally:
        for name in names:
            weft("delete", f"function/{name}", "--yes")
        weft("delete", f"network/{NETWORK}", "--yes")


def measure() -> Measurement:
    return Measurement(
        "function_network",
        "A handler in Python that returns its event, called from here through the gateway of the local cluster, where its network "
        "has been reached before. Cold: a new instance each time, of a machine a fresh copy.",
        asyncio.run(run()),
    )

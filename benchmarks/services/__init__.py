"""New connections to a service: 10,000 while weights change all the time and a target dies, and what the way through it costs;
and 50,000 requests to one with protocol http.

Three nodes of network namespaces; the killed target is taken out a second after it died, which is the latest at which agents do."""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import time

from tests.host.network_lab import Lab
from tests.host.service_lab import SHOP, A, Shop

from benchmarks.measurement import Figure, Measurement
from benchmarks.services.requests import run_requests

CONNECTIONS, CHANGES_SECONDS, DETECTED_SECONDS = 10_000, 0.2, 1.0
COMPARED, ROUNDS = 1_500, 3


async def compare(shop: Shop) -> Figure:
    """New connections by the service and past it, in turn: each asks one question."""
    await shop.serve(a=1)
    found: dict[str, list[float]] = {f"{SHOP}:80": [], f"{A}:8080": []}
    for _ in range(ROUNDS):
        for place, seconds in found.items():
            began = time.perf_counter()
            answers = shop.count("d", place, COMPARED)
            seconds.append((time.perf_counter() - began) / COMPARED)
            assert sum(answers.values()) == COMPARED and len(answers) == 1, answers
    through, past = (min(seconds) for seconds in found.values())
    value, peer = f"{through * 1e6:.0f} µs each", f"to the target itself {past * 1e6:.0f} µs"
    return Figure("a new connection by a service, one at a time", value, peer, f"{through / past:.2f}×")


async def load(shop: Shop) -> list[Figure]:
    weights = {"a": 400, "b": 300, "c": 300}
    await shop.serve(sticky=False, **weights)
    busy: subprocess.Popen[str] = shop.start("d", "load", f"{SHOP}:80", str(CONNECTIONS))
    changes, killed_at, gone, took = 0, 0.0, False, list[float]()
    began = time.monotonic()
    while busy.poll() is None and not _has_ended(busy):
        if not killed_at and time.monotonic() - began > 2.0:
            shop.servers["c"].kill()
            killed_at = time.monotonic()
        if killed_at and time.monotonic() - killed_at > DETECTED_SECONDS:
            gone = True
        changes += 1
        share = 100 + changes * 70 % 800
        await shop.serve(a=share, b=1000 - share, c=0 if gone else 300)
        took.append(shop.n1.seconds)
        await asyncio.sleep(CHANGES_SECONDS)
    assert busy.stdout is not None
    said = json.loads(busy.stdout.readline())
    failed = [at for at in said["failed_at"] if not 0 <= at - killed_at <= DETECTED_SECONDS + max(took) + 0.1]
    return [
        Figure(
            f"L4: {said['asked']} new connections, {changes} changes of weights, one target killed",
            f"{len(failed)} failed",
            f"{len(said['failed_at']) - len(failed)} in the second before the killed one was taken out",
            goal="0 but those of the dead one's last second",
            kept=not failed and said["asked"] >= CONNECTIONS,
        ),
        Figure(
            "a change of weights on one node",
            f"{sorted(took)[len(took) // 2] * 1000:.0f} ms",
            peer=f"max {max(took) * 1000:.0f} ms",
        ),
    ]


def _has_ended(busy: subprocess.Popen[str]) -> bool:
    assert busy.stdout is not None
    return bool(select.select([busy.stdout], [], [], 0)[0])


async def run() -> list[Figure]:
    lab = Lab(3)
    try:
        shop = Shop(lab)
        await shop.build()
        return [*await load(shop), await compare(shop)]
    finally:
        lab.close()


def measure() -> Measurement:
    about = " ".join((__doc__ or "").split("\n\n")[0].split())
    return Measurement("services", about, asyncio.run(run()) + asyncio.run(run_requests()))

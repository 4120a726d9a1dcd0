"""HTTP requests to a service, by the proxy of the client's node: that none is lost while everything about it changes, and what the
way through it costs."""

from __future__ import annotations

import asyncio
import json
import select
from typing import Any

from tests.host.http_lab import ADDRESSES, CLIENTS, SHOP, WebShop
from tests.host.network_lab import Lab

from benchmarks.measurement import Figure

REQUESTS, CONNECTIONS, PAUSE_SECONDS = 50_000, 16, 0.2
COMPARED, ROUNDS = 5_000, 8
# In turn: shares, endpoints that come and go, and every so often another port, which takes a reload.
CHANGES: tuple[dict[str, Any], ...] = (
    {"a": 500, "b": 500},
    {"a": 100, "b": 900},
    {"a": 100, "b": 400, "c": 500},
    {"b": 400, "c": 600},
    {"a": 0, "c": 1000},
    {"a": 1, "b": 999, "ports": (80, 81)},
    {"a": 300, "b": 300, "c": 400, "ports": (80, 81)},
    {"a": 950, "b": 50},
)


async def load(shop: WebShop) -> Figure:
    shop.serve(a=1000)
    asked = [*shop.enter("d"), *CLIENTS, "ask", f"{SHOP}:80", str(REQUESTS), str(CONNECTIONS)]
    busy = shop.lab.start(asked, wait=False)
    assert busy.stdout is not None
    changes = 0
    while not select.select([busy.stdout], [], [], 0)[0]:
        shop.serve(**CHANGES[changes % len(CHANGES)])
        changes += 1
        await asyncio.sleep(PAUSE_SECONDS)
    found = json.loads(busy.stdout.readline())
    answered = found["statuses"].get("200", 0)
    failed = sum(found["statuses"].values()) - answered
    return Figure(
        f"L7: {answered + failed} requests, {changes} changes: shares, endpoints, {2 * changes // len(CHANGES)} reloads",
        f"{failed} failed",
        f"slowest {found['most'] * 1000:.0f} ms",
        goal="0",
        kept=failed == 0 and answered >= REQUESTS,
    )


async def compare(shop: WebShop) -> list[Figure]:
    """By the service and past it, in turn, to one endpoint on the client's node; the best of each."""
    shop.serve(a=1000)
    rates: dict[str, list[tuple[float, float]]] = {f"{SHOP}:80": [], f"{ADDRESSES['a']}:8080": []}
    for _ in range(ROUNDS):
        for place, found in rates.items():
            said = shop.ask(COMPARED, str(CONNECTIONS), place=place)
            assert said["statuses"] == {"200": COMPARED}, said["statuses"]
            found.append((COMPARED / said["seconds"], said["p50"] * 1000))
    (through, past), (slow, quick) = (
        [max(rate for rate, _ in found) for found in rates.values()],
        [min(p50 for _, p50 in found) for found in rates.values()],
    )
    return [
        Figure(
            f"L7: requests a second, {CONNECTIONS} connections that stay open",
            f"{through:.0f}",
            f"to the endpoint itself {past:.0f}",
            f"{through / past:.2f}×",
            goal="≥ 60 %",
            kept=through >= 0.6 * past,
        ),
        Figure(
            "L7: p50 of such a request",
            f"{slow:.2f} ms",
            f"to the endpoint itself {quick:.2f} ms",
            f"+{slow - quick:.2f} ms",
            goal="≤ +1 ms",
            kept=slow - quick <= 1.0,
        ),
    ]


async def run_requests() -> list[Figure]:
    lab = Lab(2)
    try:
        shop = WebShop(lab)
        await shop.build()
        return [await load(shop), *await compare(shop)]
    finally:
        lab.close()

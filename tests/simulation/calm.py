"""Hours in which nothing happens: whatever looks, measures, tries again or says that it is alive does the same, less often.
72 hours at the pace of a bad afternoon take a quarter of an hour of a core."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tests.simulation.virtual_loop import Clock
from weft.agent import agent
from weft.agent.allocation import worker
from weft.agent.flow import recorder
from weft.agent.logs import collector
from weft.agent.network import executor
from weft.agent.node import capabilities, link_load, usage
from weft.agent.replication import merging
from weft.agent.server import line
from weft.agent.volume import inventory, pools
from weft.api.dashboard import boards
from weft.api.state import store_position, token_use
from weft.contracts import wakeup
from weft.contracts.clock import SystemClock
from weft.controllers.node import controller
from weft.informer import leader_lease

MOST_STEPS = 10**9  # days have many
AFTER_SECONDS = 300.0  # until all are at their own pace again
PERIODS = {
    **dict.fromkeys(
        [
            *((collector, name) for name in ("STEP_SECONDS", "MOST_REST_SECONDS", "KEEP_SECONDS")),
            (usage, "SAMPLE_SECONDS"),
            (link_load, "LEAST_SECONDS"),
            (merging, "CHECK_SECONDS"),
            *((pools, name) for name in ("CHECK_SECONDS", "FILL_SECONDS")),
            (recorder, "LOOK_SECONDS"),
            (inventory, "CHECK_SECONDS"),
            (capabilities, "PROBE_SECONDS"),
            (executor, "HEAL_SECONDS"),
            (worker, "REVIEW_SECONDS"),
            (line, "LONG_CEILING_SECONDS"),
            (boards, "_SWEEP_SECONDS"),
            (store_position, "_BEAT_SECONDS"),
            (token_use, "WRITE_SECONDS"),
            (leader_lease, "TTL_SECONDS"),
        ],
        60.0,
    ),
    (usage, "STALE_SECONDS"): 240.0,
    (controller, "CHECK_EVERY_SECONDS"): 15.0,
    (agent, "HEARTBEAT_SECONDS"): 20.0,  # a longer silence counts as one
}


async def pass_calmly(seconds: float) -> None:
    """Let time pass, and be at the usual pace at its end."""
    with calm():
        await asyncio.sleep(seconds - AFTER_SECONDS)
    await asyncio.sleep(AFTER_SECONDS)


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """All of it, while this lasts."""
    with contextlib.ExitStack() as periods:
        for (module, name), seconds in PERIODS.items():
            periods.enter_context(mock.patch.object(module, name, seconds))
        # The loop's own time is the clock's: a timer instead of two tasks for each wait.
        clocks: Any = (SystemClock, Clock)
        periods.enter_context(mock.patch.object(wakeup, "SystemClock", clocks))
        yield

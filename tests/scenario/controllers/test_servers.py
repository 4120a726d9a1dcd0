"""Servers of a fabric: which of them serve, and which leads."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from tests.scenario.controllers_lab import Lab

from weft.kinds.server import ServerStatus, StoreUse
from weft.launch.server.membership.presence import keep_presence, wait_for_name
from weft.objects.envelope import decode_part
from weft.objects.errors import InUse
from weft.objects.identity import ServerIdentity
from weft.protocol.function_counts import name_gateway
from weft.protocol.server.presence import SCHEDULES, Presence


async def read_servers(lab: Lab) -> dict[str, ServerStatus]:
    return {one.name: decode_part(one.status, ServerStatus) for one in await lab.every("server")}


async def test_each_server_is_shown_with_its_address_and_one_that_ends_is_not_ready(tmp_path: Path) -> None:
    places = {"s1": ["10.0.0.1"], "s2": ["10.0.0.2"]}
    said = dict[str, Presence]()
    async with Lab(tmp_path) as lab:

        def present(name: str) -> Presence:
            return said.get(name) or Presence(f"uid-{name}", f"https://{name}:8443", addresses=[*places[name]])

        tasks = {
            name: asyncio.create_task(
                keep_presence(
                    lab.store,
                    ServerIdentity(name, f"uid-{name}"),
                    partial(present, name),
                    lab.clock,
                )
            )
            for name in ("s1", "s2")
        }

        async def both() -> bool:
            return {name: one.phase for name, one in (await read_servers(lab)).items()} == {
                "s1": "Ready",
                "s2": "Ready",
            }

        await lab.until(both)
        assert (await read_servers(lab))["s2"].address == "https://s2:8443"
        places["s2"].append("10.0.0.3")  # it has got another address while it runs

        async def moved() -> bool:
            return (await read_servers(lab))["s2"].addresses == ["10.0.0.2", "10.0.0.3"]

        await lab.until(moved)
        said["s2"] = Presence(
            "uid-s2",
            trouble="its member of the store doesn't answer",
            store=StoreUse(used=81, quota=100, problem="full"),
        )

        async def troubled() -> bool:
            found, shown = (await read_servers(lab))["s2"], await lab.every("server")
            full = [has_space.message for one in shown if (has_space := one.condition("StoreHasSpace")) is not None]
            return found.phase == "NotReady" and full == ["full"] and "StoreNearlyFull" in lab.journal.reasons("s2")

        await lab.until(troubled)
        assert (await read_servers(lab))["s2"].message == "its member of the store doesn't answer"
        said["s2"] = Presence("uid-s2", "https://s2:8443", sent_at=lab.clock.now() + 3600)
        assert (await read_servers(lab))["s1"].clock_ahead == 0

        async def skewed() -> bool:
            return 3500 < (await read_servers(lab))["s2"].clock_ahead <= 3600

        await lab.until(skewed)
        del said["s2"]
        gateway = name_gateway(ServerIdentity("s1", "0123456789"))
        await lab.store.grant(SCHEDULES, gateway, 60.0)

        async def fires() -> bool:
            return (await read_servers(lab))["s1"].leads == ["schedules"]

        await lab.until(fires)
        tasks["s2"].cancel()

        async def alone() -> bool:
            return (await read_servers(lab))["s2"].phase == "NotReady"

        await lab.until(alone)
        assert (await read_servers(lab))["s2"].address == "https://s2:8443"  # where it was
        assert "ServerNotReady" in lab.journal.reasons("s2")
        tasks["s1"].cancel()


async def test_a_second_server_of_the_same_name_ends_with_a_remedy(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        first, second = (
            asyncio.create_task(
                keep_presence(lab.store, ServerIdentity("s1", uid), partial(Presence, uid=uid), lab.clock)
            )
            for uid in ("one", "two")
        )

        async def ended() -> bool:
            return second.done()

        await lab.until(ended)
        with pytest.raises(InUse, match="another server of this fabric is called s1"):
            second.result()
        assert not first.done()
        third = asyncio.create_task(wait_for_name(lab.store, ServerIdentity("s1", "three"), lab.clock))

        async def refused() -> bool:
            return third.done()

        await lab.until(refused)
        with pytest.raises(InUse, match="another server of this fabric is called s1"):  # before it writes anything
            third.result()
        await wait_for_name(lab.store, ServerIdentity("s1", "one"), lab.clock)
        first.cancel()

"""A policy that goes by what is used, on a living fabric: heartbeats say it, and one that says nothing any more isn't trusted."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers_lab import Lab
from tests.scenario.scheduler.test_placement import decision_of
from tests.scenario.scheduler.test_placement_policies import put_policy, where

from weft.protocol.heartbeat import Digest, Use, write_digest


async def uid_of(lab: Lab, name: str) -> str:
    return (await lab.vm(name)).uid


async def test_the_next_goes_where_least_is_used_as_the_last_heartbeat_said(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        lazy, busy = await lab.add_node("lazy"), await lab.add_node("busy")
        await put_policy(lab, "real", strategy="least_loaded", basis="used")
        assert await where(lab, "a", node="lazy", cpu=6.0) == "lazy"
        assert await where(lab, "b", node="busy", cpu=1.0) == "busy"
        lazy.saying = write_digest(Digest({await uid_of(lab, "a"): Use(10, 2**20, 0)}))
        busy.saying = write_digest(Digest({await uid_of(lab, "b"): Use(5000, 2**20, 0)}))
        for node in (lazy, busy):
            await node.heartbeat()
        assert await where(lab, "plain") == "busy"
        await lab.pass_time(3)
        assert await where(lab, "c", strategy="@real") == "lazy"
        decision = await decision_of(lab, "c")
        assert (decision.basis, decision.notes) == ("used", [])
        assert (await decision_of(lab, "plain")).basis == "allocation"


async def test_what_is_not_settled_counts_with_what_it_asked_for(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        boots, works = await lab.add_node("boots"), await lab.add_node("works")
        await put_policy(lab, "default", strategy="least_loaded", basis="used")
        assert await where(lab, "a", node="boots", cpu=6.0) == "boots"
        boots.saying = write_digest(Digest({await uid_of(lab, "a"): Use(10, 0, 0, settled=False)}))
        works.saying = write_digest(Digest({}, Use(4000, 0, 0)))
        for node in (boots, works):
            await node.heartbeat()
        await lab.pass_time(3)
        assert await where(lab, "b") == "works"


async def test_a_node_whose_digest_is_gone_counts_with_what_is_allocated_and_that_is_said(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        one, other = await lab.add_node("one"), await lab.add_node("other")
        await put_policy(lab, "default", strategy="least_loaded", basis="used")
        for node in (one, other):
            node.saying = write_digest(Digest({}, Use(4000 if node is one else 100, 0, 0)))
            await node.heartbeat()
        assert await where(lab, "a") == "other"
        one.saying = b""  # an older agent, after a downgrade
        await one.heartbeat()
        await lab.pass_time(3)
        assert await where(lab, "b", cpu=0.5) == "one"
        assert (await decision_of(lab, "b")).notes == ["usage not measured, so what is allocated counts: one"]

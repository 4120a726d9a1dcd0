"""A workload that prefers to be near those it talks to, on a living fabric: nodes' heartbeats say who talks to whom."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers_lab import Lab
from tests.scenario.scheduler.test_placement import decision_of
from tests.scenario.scheduler.test_placement_policies import where

from weft.contracts.store import Delete
from weft.kinds.allocation import AllocationSpec
from weft.kinds.endpoint import endpoint_name
from weft.objects.envelope import decode_envelope, decode_part
from weft.protocol.heartbeat import Digest, write_digest

RATE = 2.0 * 2**20


async def place_again(lab: Lab, name: str, **spec: object) -> str | None:
    """Stop it, take its place away, and start it with another spec: where it runs then."""
    await lab.change_spec(name, run="stop")
    await lab.until_phase(name, "Stopped")
    for entry in (await lab.store.list("/allocation/")).entries:
        if decode_part(decode_envelope(entry.value).spec, AllocationSpec).workload.name == name:
            await lab.store.commit([Delete(entry.key)])
    await lab.change_spec(name, run="run", **spec)
    await lab.until_phase(name, "Running")
    return (await lab.status(name)).node


async def test_it_is_placed_near_its_talkers_unless_anti_affinity_says_otherwise_and_is_told_why(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        nodes = {name: await lab.add_node(name) for name in ("n1", "n2", "n3")}
        await nodes["n3"].write_report(round_trips={nodes["n1"].uid: 4.0, nodes["n2"].uid: 0.5})
        assert await where(lab, "db", node="n3", cpu=1.0, anti_affinity_groups=["apart:preferred"]) == "n3"
        assert await where(lab, "web", node="n1") == "n1"
        assert await where(lab, "other", node="n2") == "n2"
        [of_web] = [one for one in await lab.endpoints() if one.workload.name == "web"]
        peer = endpoint_name(of_web.network_uid, of_web.address)
        nodes["n3"].saying = write_digest(Digest(talkers={(await lab.vm("db")).uid: [(peer, RATE), ("gone", RATE)]}))
        lie = {(await lab.vm("other")).uid: [(peer, 9e9)], "nobody": [(peer, 9e9)]}  # of what isn't on n1
        nodes["n1"].saying = write_digest(Digest(talkers=lie))
        for one in nodes.values():
            await one.heartbeat()
        await lab.pass_time(3)
        assert await place_again(lab, "web", node=None) == "n1", (
            "without the preference, the first by name of equal ones"
        )
        assert await place_again(lab, "web", near="talkers") == "n3"
        assert (await decision_of(lab, "web")).notes == ["near talkers: vm/db 2 MiB/s on n3"]
        assert await place_again(lab, "web", anti_affinity_groups=["apart:preferred"]) == "n2"
        assert (await decision_of(lab, "web")).notes == ["near talkers: vm/db 2 MiB/s on n3, 0.5 ms away"]


async def test_what_was_known_is_known_again_to_a_new_scheduler(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = {name: await lab.add_node(name) for name in ("n1", "n2")}
        assert await where(lab, "db", node="n2", cpu=4.0) == "n2"
        assert await where(lab, "web", node="n1") == "n1"
        [of_web] = [one for one in await lab.endpoints() if one.workload.name == "web"]
        talkers = {(await lab.vm("db")).uid: [(endpoint_name(of_web.network_uid, of_web.address), RATE)]}
        nodes["n2"].saying = write_digest(Digest(talkers=talkers))
        await nodes["n2"].heartbeat()
        await lab.kill_controllers()
        lab.start_controllers("another")
        await lab.pass_time(3)
        assert await place_again(lab, "web", node=None, near="talkers") == "n2", "the peer's node has seen it too"

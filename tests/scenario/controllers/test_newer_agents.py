"""A node whose agent is newer than the servers keeps what it runs, and gets nothing more before they are upgraded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from tests.scenario.controllers_lab import Lab

from weft.cli.node.scheduling import describe_scheduling
from weft.kinds.decision import DecisionSpec
from weft.kinds.node import NodeStatus
from weft.kinds.parts.node.columns import read_status
from weft.kinds.server import ServerStatus
from weft.launch.server.membership.presence import keep_presence
from weft.objects.envelope import decode_part
from weft.objects.identity import ServerIdentity
from weft.protocol.server.presence import Presence


def keep_server(lab: Lab, name: str, releases: dict[str, str]) -> asyncio.Task[object]:
    """Send a server's heartbeats, with the release that ``releases`` has for it at that time."""

    def present() -> Presence:
        return Presence(f"uid-{name}", f"https://{name}:8443", release=releases[name])

    return asyncio.create_task(keep_presence(lab.store, ServerIdentity(name, f"uid-{name}"), present, lab.clock))


async def read_newer_than(lab: Lab) -> str:
    node = await lab.get("/node/-/n1")
    assert node is not None
    return decode_part(node.status, NodeStatus).newer_than


async def test_a_node_with_a_newer_agent_takes_nothing_more_until_all_servers_are_as_new(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        releases = {"one": "0.1.0", "two": "0.2.4"}
        tasks = [keep_server(lab, name, releases) for name in releases]

        async def serve() -> bool:
            found = [decode_part(one.status, ServerStatus) for one in await lab.every("server")]
            return [one.phase for one in found] == ["Ready", "Ready"]

        await lab.until(serve)
        node = await lab.add_node("n1", version="0.1.9")
        await lab.put_vm("before", cpu=1.0)
        await lab.until_phase("before", "Running")
        assert await read_newer_than(lab) == ""

        await node.write_report(version="0.2.0")

        async def newer() -> bool:
            return await read_newer_than(lab) == "0.1.0"

        await lab.until(newer)
        shown = msgspec.json.decode(msgspec.json.encode(await lab.get("/node/-/n1")))
        assert read_status(shown) == "Newer"
        assert "its agent is weft 0.2.0, newer than the servers" in dict(describe_scheduling(shown, [], {}))["newer"]
        assert lab.journal.reasons("n1").count("NodeNewer") == 1
        await lab.until_phase("before", "Running")
        await lab.put_vm("after", cpu=1.0)
        await lab.until_refused("after", "noAvailableAgents")
        decided = await lab.get("/decision/default/vm.after")
        assert decided is not None
        (verdict,) = decode_part(decided.spec, DecisionSpec).verdicts
        assert verdict.reason == "its agent 0.2.0 is newer than the servers (0.1.0)"

        releases["one"] = "0.2.0"
        await lab.until_phase("after", "Running")
        assert await read_newer_than(lab) == ""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

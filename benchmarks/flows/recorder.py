"""The recorder in a node's namespace: says when it is ready, then, when asked, what it cost and what it recorded."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from weft.agent.flow.recorder import LOOK_SECONDS, REST, FlowRecorder
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Segment
from weft.drivers.network.bridge.driver import BridgeNetwork
from weft.kinds.parts.stream_verbs import FlowsInput

RUNS = 5
NETWORK = "net-1"  # the segment's id is the short one of this


def make_local(segment: Segment, network_uid: str) -> Any:
    (one, _) = segment.endpoints
    nic = SimpleNamespace(network="net", network_uid=network_uid, address=one.address, uid="n")
    workload = SimpleNamespace(uid="one", name="one", project="default", kind="vm")
    return SimpleNamespace(uid="a", spec=SimpleNamespace(workload=workload, nics=[nic], groups=[]))


def count(driver: BridgeNetwork, port: str) -> int:
    counts = driver.nic_counters.read([port])[port]
    return counts.received_bytes + counts.sent_bytes


async def main() -> None:
    host, segment = (
        msgspec.json.decode(text, type=kind) for text, kind in zip(sys.argv[1:3], (Host, Segment), strict=True)
    )
    port = sys.argv[3]
    driver = BridgeNetwork(host, None)
    await driver.ensure_filters([])  # connections are followed from here on
    local = make_local(segment, NETWORK)
    Path(host.state_dir).mkdir(parents=True, exist_ok=True)
    table: Any = [SimpleNamespace(local=local)]
    recorder = FlowRecorder(Path(host.state_dir), "n1", driver, table, {}, SystemClock())
    await recorder.refresh()
    before = count(driver, port)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    counted = count(driver, port) - before
    spent, took = [], []
    for _ in range(RUNS):
        cpu, began = time.process_time(), time.monotonic()
        await recorder.refresh()
        spent.append(time.process_time() - cpu)
        took.append(time.monotonic() - began)
    flows = len(await driver.seen.read())
    answer = await recorder.answer(local, FlowsInput(since=600.0))
    every = max(LOOK_SECONDS, REST * sorted(took)[RUNS // 2])
    cpu = sorted(spent)[RUNS // 2]
    found = {
        "flows": flows,
        "cpu": cpu,
        "every": every,
        "share": cpu / every,
        "recorded": sum(flow.bytes for flow in answer.flows),
        "counted": counted,
    }
    print(msgspec.json.encode(found).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

"""``weft edge gateway`` as a process, between a real API and a device that speaks MQTT to its Mosquitto: the line is cut, and the
process killed."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.link_proxy import LinkProxy
from tests.scenario.api_lab import DoorsLab

from weft.agent.node.enrolment import FILE, join, read_enrolment
from weft.client.context import hash_ca
from weft.contracts.clock import SystemClock
from weft.drivers.device.mqtt.client import MqttClient
from weft.drivers.device.mqtt.packets import Publish
from weft.kinds.device import DeviceReport
from weft.kinds.rule import RuleReport
from weft.objects.envelope import decode_part

PROPERTIES = {
    "temperature": {"type": "number", "minimum": -40, "maximum": 85, "read_only": True},
    "fan": {"type": "boolean"},
    "setpoint": {"type": "number"},
}
RULE = {"when": "temperature > 8", "then": [{"set": {"fan": True}, "expires_seconds": 60}], "cooldown_seconds": 0}


async def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.05)


class Site:
    """A node's gateway, its line to the server, and one device."""

    def __init__(self, folder: Path, lab: DoorsLab) -> None:
        self.lab, self.folder, self.node_state = lab, folder, folder / "node"
        token = str(lab.client.create({"kind": "token", "name": "j", "spec": {"use": "join", "node": "n1"}})["secret"])
        join(self.node_state, lab.context.server, token, hash_ca(lab.context.ca), "n1")
        self.proxy = LinkProxy("127.0.0.1", lab.port)
        kept = msgspec.structs.replace(read_enrolment(self.node_state), server=self.proxy.url)
        (self.node_state / FILE).write_bytes(msgspec.json.encode(kept))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        (folder / "edge.yaml").write_text(
            f"node_state: {self.node_state}\nstate: {folder}/edge\nlisten: 127.0.0.1:{self.port}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.said: dict[str, Any] = {}
        self.got: list[dict[str, Any]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.saying: set[asyncio.Task[None]] = set()
        self.device = MqttClient(
            "cold-1",
            "default.cold-1",
            "quite secret",
            lambda: ("127.0.0.1", self.port),
            ["weft/default/cold-1/command"],
            self._obey,
            SystemClock(),
        )

    def start(self) -> None:
        argv = [Path(sys.executable).with_name("weft"), "edge", "gateway", "--config", str(self.folder / "edge.yaml")]
        self.process = subprocess.Popen(argv, stdout=(self.folder / "gateway.log").open("ab"), stderr=subprocess.STDOUT)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def _obey(self, message: Publish) -> None:
        command = msgspec.json.decode(message.payload)
        self.got.append(command)
        self.say({**self.said, **command["set"]})

    def say(self, values: dict[str, Any]) -> None:
        self.said = values
        self.saying.add(asyncio.create_task(self._say(values)))

    async def _say(self, values: dict[str, Any]) -> None:
        await until(lambda: self.device.is_connected)
        await self.device.publish("weft/default/cold-1/reported", msgspec.json.encode(values))

    def report(self) -> DeviceReport:
        found = self.lab.stored("/device/default/cold-1")
        assert found is not None
        return decode_part(found.report, DeviceReport)

    def count_fired(self) -> int:
        found = self.lab.stored("/rule/default/warm")
        assert found is not None
        nodes = decode_part(found.report, RuleReport).nodes
        return nodes["n1"].fired if nodes else 0

    async def close(self) -> None:
        self.device.close()
        tasks = self.tasks | self.saying
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    # Not pytest's: the broker's user must come through, and each run of pytest closes its folders again.
    folder = Path(tempfile.mkdtemp(prefix="weft-edge-"))
    folder.chmod(0o711)
    lab = DoorsLab(folder)
    made = Site(folder, lab)
    try:
        yield made
    finally:
        await made.close()
        made.proxy.close()
        lab.close()
        shutil.rmtree(folder, ignore_errors=True)


def make(lab: DoorsLab, kind: str, name: str, **spec: Any) -> None:
    lab.client.create({"kind": kind, "name": name, "project": "default", "spec": spec})


async def test_a_device_is_heard_ruled_and_commanded_also_while_the_line_is_cut_and_after_a_kill(site: Site) -> None:
    make(site.lab, "devicemodel", "cold", properties=PROPERTIES)
    make(site.lab, "secret", "pw", values={"password": "quite secret"})
    make(site.lab, "device", "cold-1", node="n1", model="cold", credentials="pw")
    make(site.lab, "rule", "warm", **RULE)
    site.start()
    site.tasks.add(asyncio.create_task(site.device.keep()))
    site.say({"temperature": 4.5, "fan": False})
    await until(lambda: site.report().reported == {"temperature": 4.5, "fan": False})
    assert site.report().phase == "Online"

    site.lab.client.verb(
        "device", "cold-1", "set", {"desired": {"setpoint": -18}, "expires_seconds": 60}, project="default"
    )
    await until(lambda: site.report().commands and site.report().commands[-1].outcome == "Confirmed")
    assert [one["set"] for one in site.got] == [{"setpoint": -18}]
    assert site.report().drift == []

    site.proxy.cut()
    site.say({**site.said, "temperature": 9.0})  # the rule acts without the server
    await until(lambda: site.said.get("fan") is True)
    await asyncio.to_thread(site.kill)
    site.start()  # without a server it knows devices, passwords, rules
    site.say({**site.said, "temperature": 4.0, "fan": False})
    await asyncio.gather(*site.saying)
    site.say({**site.said, "temperature": 9.5})
    await until(lambda: site.said.get("fan") is True)

    site.proxy.mend()
    await until(lambda: site.report().reported == {"temperature": 9.5, "fan": True, "setpoint": -18})
    await until(lambda: site.count_fired() == 2)

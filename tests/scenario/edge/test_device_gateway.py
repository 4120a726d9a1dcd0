"""``weft edge gateway`` as a process, between a real API and a device that speaks MQTT to its Mosquitto: the line is cut, and the
process killed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.link_proxy import LinkProxy
from tests.onnx_files import digest, linear
from tests.scenario.api_lab import ApiLab

from weft.agent.node.enrolment import FILE, join, read_enrolment
from weft.client import Client
from weft.client.context import hash_ca
from weft.client.function_code import upload_code
from weft.contracts.clock import SystemClock
from weft.drivers.device.mqtt.client import MqttClient, MqttLogin
from weft.drivers.device.mqtt.packets import Publish
from weft.kinds.device import DeviceReport
from weft.kinds.model import ModelReport, NodeRuns
from weft.kinds.rule import RuleReport
from weft.objects.envelope import decode_part
from weft.objects.errors import WeftError

PROPERTIES = {
    "temperature": {"type": "number", "minimum": -40, "maximum": 85, "read_only": True},
    "fan": {"type": "boolean"},
    "setpoint": {"type": "number"},
    "lamp": {"type": "boolean"},
}
LIGHT = linear([1.0], -7.0)
RULE = {"when": "temperature > 8", "then": [{"set": {"fan": True}, "expires_seconds": 60}], "cooldown_seconds": 0}


async def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.05)


def read_command(pid: int) -> bytes:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


class Site:
    """A node's gateway, its line to the server, and one device."""

    def __init__(self, folder: Path, lab: ApiLab) -> None:
        self.lab, self.folder, self.node_state = lab, folder, folder / "node"
        token = str(lab.client.create({"kind": "token", "name": "j", "spec": {"use": "join", "node": "n1"}})["secret"])
        join(self.node_state, lab.context.server, token, hash_ca(lab.context.ca), "n1")
        self.proxy = LinkProxy("127.0.0.1", lab.port)
        kept = msgspec.structs.replace(read_enrolment(self.node_state), server=self.proxy.url)
        (self.node_state / FILE).write_bytes(msgspec.json.encode(kept))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        (folder / "edge.yaml").write_text(
            f"node_state: {self.node_state}\nstate: {folder}/edge\nlisten: 127.0.0.1:{self.port}\ncache: sqlite\n"
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.said: dict[str, Any] = {}
        self.got: list[dict[str, Any]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        self.device = MqttClient(
            "cold-1",
            lambda: MqttLogin(("127.0.0.1", self.port), "default.cold-1", "quite secret"),
            ["weft/default/cold-1/command"],
            self._obey,
            SystemClock(),
        )

    def start(self) -> None:
        argv = [Path(sys.executable).with_name("weft"), "edge", "gateway", "--config", str(self.folder / "edge.yaml")]
        self.process = subprocess.Popen(
            [str(one) for one in argv], stdout=(self.folder / "gateway.log").open("ab"), stderr=subprocess.STDOUT
        )

    def read_cached(self, name: str = "cold-1") -> dict[str, Any]:
        """What a program of the site reads of the device; {} when it isn't there."""
        with contextlib.closing(sqlite3.connect(self.folder / "edge" / "cache.db")) as base:
            found = base.execute("select value from entry where key = ?", (f"weft:twin:default:{name}",)).fetchone()
        return msgspec.json.decode(found[0]) if found else {}

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def _obey(self, message: Publish) -> None:
        command = msgspec.json.decode(message.payload)
        self.got.append(command)
        self.say(command["set"])

    def say(self, values: dict[str, Any]) -> None:
        """The device is so now; it reports all that it is, as often as it must until its broker has it."""
        self.said.update(values)
        self.changed.set()

    async def _keep_saying(self) -> None:
        while True:
            await self.changed.wait()
            self.changed.clear()
            try:
                await self.device.publish("weft/default/cold-1/reported", msgspec.json.encode(self.said))
            except WeftError:
                self.changed.set()
                await asyncio.sleep(0.05)

    def begin_device(self) -> None:
        self.tasks = {asyncio.create_task(self.device.keep()), asyncio.create_task(self._keep_saying())}

    def keeps(self, temperature: float, fan: bool) -> bool:
        """Whether the gateway has written that to its file."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/edge/gateway.db?mode=ro", uri=True)) as base:
            rows = base.execute("select body from twin").fetchall()
        twins = [msgspec.json.decode(body)["reported"] for (body,) in rows]
        return [(one.get("temperature"), one.get("fan")) for one in twins] == [(temperature, fan)]

    def keeps_rule(self, part: bytes) -> bool:
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/edge/gateway.db?mode=ro", uri=True)) as base:
            return any(part in bytes(body) for (body,) in base.execute("select body from object where kind = 'rule'"))

    def read_broker_pid(self) -> int:
        return int((self.folder / "edge/broker/broker.pid").read_text())

    def report(self, name: str = "cold-1") -> DeviceReport:
        found = self.lab.stored(f"/device/default/{name}")
        assert found is not None
        return decode_part(found.report, DeviceReport)

    def count_fired(self) -> int:
        found = self.lab.stored("/rule/default/warm")
        assert found is not None
        nodes = decode_part(found.report, RuleReport).nodes
        return nodes["n1"].fired if nodes else 0

    def count_runs(self) -> NodeRuns:
        found = self.lab.stored("/model/default/light")
        assert found is not None
        return decode_part(found.report, ModelReport).nodes.get("n1", NodeRuns())

    async def close(self) -> None:
        self.device.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    # Not pytest's: the broker's user must come through, and each run of pytest closes its folders again.
    folder = Path(tempfile.mkdtemp(prefix="weft-edge-"))
    folder.chmod(0o711)
    lab = ApiLab(folder)
    made = Site(folder, lab)
    try:
        yield made
    finally:
        await made.close()
        made.proxy.close()
        lab.close()
        shutil.rmtree(folder, ignore_errors=True)


def make(lab: ApiLab, kind: str, name: str, **spec: Any) -> None:
    lab.client.create({"kind": kind, "name": name, "project": "default", "spec": spec})


async def test_a_device_is_heard_ruled_and_commanded_also_while_the_line_is_cut_and_after_a_kill(site: Site) -> None:
    make(site.lab, "devicemodel", "cold", properties=PROPERTIES)
    make(site.lab, "secret", "pw", values={"password": "quite secret\n"})
    make(site.lab, "device", "cold-1", node="n1", model="cold")
    make(site.lab, "rule", "warm", **{**RULE, "when": "temperature > 80"})
    site.start()
    await until(lambda: "no credentials" in site.report().problem)
    site.lab.client.patch("device", "cold-1", {"spec": {"credentials": "pw"}}, project="default")
    await until(lambda: site.report().problem == "")
    site.begin_device()
    site.say({"temperature": 4.5, "fan": False})
    await until(lambda: site.report().reported == {"temperature": 4.5, "fan": False})
    assert site.report().phase == "Online"

    site.lab.client.verb(
        "device", "cold-1", "set", {"desired": {"setpoint": -18}, "expires_seconds": 60}, project="default"
    )
    await until(lambda: site.report().commands and site.report().commands[-1].outcome == "Confirmed")
    assert [one["set"] for one in site.got] == [{"setpoint": -18}]
    assert site.report().drift == []

    site.lab.client.patch("rule", "warm", {"spec": {"when": RULE["when"]}}, project="default")
    await until(lambda: site.keeps_rule(b'temperature > 8"'))

    upload_code(Client(site.lab.context, project="default"), digest(LIGHT), LIGHT, "onnx")
    given = {"result": {"set": "lamp", "threshold": 0}, "deadline_ms": 1000}
    make(site.lab, "model", "light", file=digest(LIGHT), inputs=["temperature"], **given)
    await until(lambda: site.count_runs().file == digest(LIGHT))
    await until(lambda: site.said.get("lamp") is False)

    site.proxy.cut()
    site.say({"temperature": 9.0})  # rule and model act without the server
    await until(lambda: site.keeps(9.0, True))
    await until(lambda: site.said["lamp"])
    await until(lambda: site.read_cached()["reported"] == {**site.said, "setpoint": -18})
    assert site.read_cached()["models"]["light"]["value"] is True
    former = site.read_broker_pid()
    await asyncio.to_thread(site.kill)
    site.start()  # without a server it knows devices, passwords, rules; a rule that still holds may fire again
    site.say({"temperature": 4.0})
    await until(lambda: site.keeps(4.0, True))
    assert site.read_broker_pid() != former
    assert not read_command(former)
    await until(lambda: site.said["lamp"] is False)
    site.say({"temperature": 9.5, "fan": False})
    await until(lambda: site.said["fan"] and site.said["lamp"])

    site.proxy.mend()
    await until(lambda: site.report().reported == {**site.said, "fan": True, "lamp": True, "setpoint": -18})
    assert site.said["temperature"] == 9.5
    await until(lambda: site.count_fired() >= 2)
    await until(lambda: site.count_runs().runs >= 4)
    assert {one["set"].get("setpoint") for one in site.got if "setpoint" in one["set"]} == {-18}


async def test_a_modbus_device_is_asked_and_set_at_an_address_that_the_settings_allow(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "tests.host.modbus_server", str(port)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdin is not None and server.stdout is not None
            assert server.stdout.readline() == b"listens\n"
            rows = [
                {"unit": 1, "table": "input", "address": 4, "words": [45]},
                {"unit": 1, "table": "coil", "address": 0, "words": [False]},
                {"unit": 1, "table": "holding", "address": 50, "words": [0x4120, 0]},
                {"unit": 1, "table": "holding", "address": 60, "words": [0]},
            ]
            server.stdin.write(msgspec.json.encode(rows) + b"\n")
            server.stdin.flush()
            properties = {
                "temperature": {"type": "number", "read_only": True, "href": "input/4?type=int16&scale=0.1"},
                "fan": {"type": "boolean", "href": "coil/0"},
                "single": {"type": "number", "href": "holding/50?type=float32"},
                "tenths": {"type": "number", "href": "holding/60?type=int16&scale=0.1"},
            }
            make(site.lab, "devicemodel", "plc", properties=properties)
            address = f"127.0.0.1:{port}/1"
            make(
                site.lab, "device", "plc", node="n1", model="plc", protocol="modbus", address=address, poll_seconds=0.2
            )
            site.start()
            await until(lambda: "is refused: it is this machine's own address" in site.report("plc").problem)
            await asyncio.to_thread(site.kill)
            with (site.folder / "edge.yaml").open("a") as settings:
                settings.write("local_devices: true\n")
            site.start()
            await until(
                lambda: site.report("plc").reported == {"temperature": 4.5, "fan": False, "single": 10.0, "tenths": 0.0}
            )
            assert (site.report("plc").phase, site.report("plc").problem) == ("Online", "")
            given = {"desired": {"fan": True, "single": 21.7, "tenths": -1.74}, "expires_seconds": 60}
            site.lab.client.verb("device", "plc", "set", given, project="default")
            await until(lambda: [one.outcome for one in site.report("plc").commands] == ["Confirmed"] * 3)
            assert site.report("plc").reported == {"temperature": 4.5, "fan": True, "single": 21.7, "tenths": -1.7}
        finally:
            server.kill()

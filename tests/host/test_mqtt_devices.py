"""The MQTT driver against a real Mosquitto, kept as the gateway keeps it, and killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest
from tests.conformance.device_contract import ONE, OTHER, DeviceDriverContract, RecordingListener, until, until_works

from weft.contracts.clock import SystemClock
from weft.contracts.device import AnnouncedDevice, Thing, Value
from weft.drivers.device.mqtt.client import MqttClient, MqttLogin
from weft.drivers.device.mqtt.driver import MqttDriver
from weft.drivers.device.mqtt.packets import Publish
from weft.edge.broker.broker import Broker
from weft.edge.broker.config import GATEWAY, STRANGERS, Bounds, Listening

pytestmark = pytest.mark.host
clock = SystemClock()


class MqttDevice:
    """A device as people build them: it obeys its commands, once each, and reports what it is."""

    def __init__(self, thing: Thing, port: int, password: str, clean: bool = False) -> None:
        root = f"weft/{thing.project}/{thing.name}"
        self.root, self.values, self.done, self.got = root, dict[str, Value](), set[str](), list[bytes]()
        self.client = MqttClient(
            thing.name,
            lambda: MqttLogin(("127.0.0.1", port), f"{thing.project}.{thing.name}", password),
            [f"{root}/command"],
            self._take,
            clock,
        )
        self.tasks = {asyncio.create_task(self.client.keep())}

    def _take(self, message: Publish) -> None:
        self.got.append(message.payload)
        command = msgspec.json.decode(message.payload)
        if command["id"] not in self.done:
            self.done.add(command["id"])
            self.values.update(command.get("set", {}))
            task = asyncio.create_task(self._report())
            self.tasks.add(task)

    async def say(self, values: Mapping[str, Value]) -> None:
        self.values.update(values)
        await self.publish(msgspec.json.encode(dict(values)))

    async def publish(self, payload: bytes, leaf: str = "reported") -> None:
        await until(lambda: self.client.is_connected)
        await self.client.publish(f"{self.root}/{leaf}", payload)

    async def _report(self) -> None:
        await self.client.publish(f"{self.root}/reported", msgspec.json.encode(self.values))

    async def close(self) -> None:
        self.client.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def enter(broker: Broker) -> MqttLogin:
    return MqttLogin(broker.path, GATEWAY, broker.password)


class MosquittoPeer:
    one, other, announces = ONE, OTHER, True

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.broker = Broker(folder, Listening(port=self.port), Bounds(), clock)
        hashes = {f"default.{one.name}": self.broker.renew_hash("", "pw-" + one.name) for one in (ONE, OTHER)}
        self.broker.put_devices([("default", one.name) for one in (ONE, OTHER)], hashes)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.open_port = probe.getsockname()[1]
        self.strangers = Broker(folder / "open", Listening(port=self.open_port), STRANGERS, clock, is_open=True)
        self.driver = MqttDriver(lambda: enter(self.broker), clock, lambda: enter(self.strangers))
        self.keeping = [asyncio.create_task(one.keep()) for one in (self.broker, self.strangers)]
        self.devices: dict[str, MqttDevice] = {}

    def find(self, thing: Thing) -> MqttDevice:
        if thing.uid not in self.devices:
            self.devices[thing.uid] = MqttDevice(thing, self.port, "pw-" + thing.name)
        return self.devices[thing.uid]

    async def say(self, thing: Thing, values: Mapping[str, Value]) -> None:
        await self.find(thing).say(values)

    async def announce(self, found: AnnouncedDevice) -> None:
        device = {
            "identifiers": [found.address],
            "name": found.name,
            "manufacturer": found.manufacturer,
            "model": found.model,
        }
        birth = msgspec.json.encode({"unique_id": found.address, "device": device})
        stranger = MqttClient("s", lambda: MqttLogin(("127.0.0.1", self.open_port), "", ""), [], print, clock)
        keeping = asyncio.create_task(stranger.keep())
        await until(lambda: stranger.is_connected)
        await stranger.publish(f"homeassistant/sensor/{found.address}/config", birth, retain=True)
        keeping.cancel()

    async def cut(self) -> None:
        """The broker is killed, and can't come back: nobody keeps it."""
        pid = self.broker.pid
        self.keeping[0].cancel()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await asyncio.gather(self.keeping[0], return_exceptions=True)

    async def mend(self) -> None:
        self.keeping[0] = asyncio.create_task(self.broker.keep())

    async def close(self) -> None:
        for device in self.devices.values():
            await device.close()
        await self.driver.close()
        for task in self.keeping:
            task.cancel()
        await asyncio.gather(*self.keeping, return_exceptions=True)


@pytest.fixture
async def peer() -> AsyncIterator[MosquittoPeer]:
    # Not pytest's: the broker's user must come through, and each run of pytest closes its folders again.
    folder = Path(tempfile.mkdtemp(prefix="weft-edge-"))
    folder.chmod(0o711)
    made = MosquittoPeer(folder / "broker")
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(folder, ignore_errors=True)


class TestMqttDriver(DeviceDriverContract):
    pass


async def test_a_device_uses_its_own_topics_only(peer: MosquittoPeer) -> None:
    heard = RecordingListener()
    for thing in (ONE, OTHER):
        await peer.driver.connect(thing)
    peer.driver.observe(heard)
    await until_works(peer.driver)
    liar, other = peer.find(ONE), peer.find(OTHER)
    await other.say({"t": 1})
    for topic in (
        "weft/default/cold-2/reported",
        "weft/default/cold-2/command",
        "weft/default/cold-1/desired",
        "other",
    ):
        with contextlib.suppress(Exception):  # not authorised
            await liar.client.publish(topic, b'{"t": 99}')
    await liar.say({"t": 2})
    await until(lambda: len(heard.values) == 2)
    assert heard.values == [(OTHER.uid, {"t": 1}), (ONE.uid, {"t": 2})]
    assert other.got == []


async def test_a_wrong_password_and_a_stranger_are_refused(peer: MosquittoPeer) -> None:
    strangers = [
        MqttDevice(ONE, peer.port, "wrong"),
        MqttDevice(Thing("u", "default", "cold-9"), peer.port, "pw-cold-9"),
    ]
    await until(
        lambda: all("authorised" in one.client.problem or "password" in one.client.problem for one in strangers)
    )
    for one in strangers:
        await one.close()


async def test_what_is_no_message_is_refused_with_its_reason(peer: MosquittoPeer) -> None:
    heard = RecordingListener()
    await peer.driver.connect(ONE)
    peer.driver.observe(heard)
    await until_works(peer.driver)
    device = peer.find(ONE)
    for payload in (b"", b"[1]", b"null", b"\xff\xfe", b'{"t": NaN}', b"[" * 5000):
        await device.publish(payload)
    await device.publish(msgspec.json.encode({f"p{number}": 1 for number in range(201)}))
    await device.publish(b'{"t": 1.0, "power": null, "update": {"state": "idle"}}')
    await device.publish(b'{"alarm": "door", "of": [1, 2]}', "event")
    await until(lambda: len(heard.named) == 9)
    assert heard.refused == [(ONE.uid, one) for one in (*["payload"] * 6, "size", "type", "type")]
    assert heard.named == [*[""] * 7, "update", "of"]
    assert heard.values == [(ONE.uid, {"t": 1.0})] and heard.events == [(ONE.uid, {"alarm": "door"})]


async def test_ten_megabytes_are_refused_by_the_broker_and_the_others_go_on(peer: MosquittoPeer) -> None:
    heard = RecordingListener()
    for thing in (ONE, OTHER):
        await peer.driver.connect(thing)
    peer.driver.observe(heard)
    await until_works(peer.driver)
    await peer.say(ONE, {"t": 1.0})
    with contextlib.suppress(Exception):  # the broker ends the connection
        await peer.find(ONE).publish(b'{"t": "' + b"x" * (10 << 20) + b'"}')
    await peer.say(OTHER, {"t": 2.0})
    await until(lambda: len(heard.values) == 2)
    assert heard.values == [(ONE.uid, {"t": 1.0}), (OTHER.uid, {"t": 2.0})]
    assert peer.broker.starts == 1


async def test_a_command_for_a_device_that_is_away_dies_with_its_time(peer: MosquittoPeer) -> None:
    await peer.driver.connect(ONE)
    peer.driver.observe(RecordingListener())
    await until_works(peer.driver)
    device = peer.find(ONE)
    await until(lambda: device.client.is_connected)
    await device.close()
    del peer.devices[ONE.uid]
    await peer.driver.write(ONE.uid, "short", {"fan": True}, 1.0)
    await peer.driver.write(ONE.uid, "long", {"fan": False}, 3600.0)
    await asyncio.sleep(2.5)  # the broker's own time, by which the first is too late: no event says so
    back = peer.find(ONE)
    await until(lambda: bool(back.got))
    assert [msgspec.json.decode(one)["id"] for one in back.got] == ["long"]


async def test_a_new_device_is_let_in_and_one_that_is_gone_is_put_out(peer: MosquittoPeer) -> None:
    await until(lambda: peer.broker.pid != 0)
    new = MqttDevice(Thing("uid-3", "default", "cold-3"), peer.port, "pw-3")
    await until(lambda: "authorised" in new.client.problem)
    peer.broker.put_devices([("default", "cold-3")], {"default.cold-3": peer.broker.renew_hash("", "pw-3")})
    await until(lambda: new.client.is_connected)
    peer.broker.put_devices([], {})
    await until(lambda: not new.client.is_connected and "authorised" in new.client.problem)
    assert peer.broker.starts == 1
    await new.close()


async def test_a_broker_that_is_killed_or_lost_its_folder_comes_back(peer: MosquittoPeer) -> None:
    peer.driver.observe(RecordingListener())
    await until_works(peer.driver)
    os.kill(peer.broker.pid, signal.SIGKILL)
    await until(lambda: peer.broker.starts == 2)
    await until_works(peer.driver)
    shutil.rmtree(peer.folder)
    await until(lambda: peer.broker.starts >= 3)
    await until(lambda: (peer.folder / "data").exists())
    await until_works(peer.driver)
    await peer.driver.connect(ONE)
    await peer.say(ONE, {"t": 1.0})


async def test_the_broker_speaks_tls_with_a_key_that_only_root_reads_and_with_a_renewed_one(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="weft-tls-", dir="/tmp"))  # that Mosquitto's user may pass through
    folder.chmod(0o711)
    certificate, key = tmp_path / "broker.crt", tmp_path / "broker.key"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def renew(name: str) -> None:
        words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -out {certificate}"
        subprocess.run(["openssl", *words.split(), "-keyout", str(key)], check=True, capture_output=True)
        key.chmod(0o600)

    async def shows(name: str) -> bool:
        tls = ssl.create_default_context(cafile=str(certificate))
        try:
            async with asyncio.timeout(10):
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    renew("first")
    broker = Broker(folder / "broker", Listening("127.0.0.1", port, str(certificate), str(key)), Bounds(), clock)
    keeping = asyncio.create_task(broker.keep())
    try:
        async with asyncio.timeout(60):
            while not await shows("first"):
                await asyncio.sleep(0.1)
        copy = (folder / "broker" / "key.pem").stat()
        assert copy.st_mode & 0o077 == 0 and broker.starts == 1
        renew("second")
        async with asyncio.timeout(60):
            while not await shows("second"):
                await asyncio.sleep(0.1)
        assert broker.starts == 1
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        shutil.rmtree(folder)

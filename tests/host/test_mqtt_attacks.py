"""What a stranger, a stolen device and a user of the machine can't do to the gateway's brokers, tried on real ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from tests.conformance.device_contract import ONE, OTHER, RecordingListener

from weft.contracts.clock import SystemClock
from weft.contracts.device import Thing, Value
from weft.drivers.device.mqtt.client import MqttClient, MqttLogin
from weft.drivers.device.mqtt.driver import CLIENT, MqttDriver
from weft.drivers.device.mqtt.packets import CONNACK, DISCONNECT, PUBLISH, Reader, write_connect, write_publish
from weft.edge.broker import broker as under_test
from weft.edge.broker.broker import ASIDE, Broker, end_former, require_program
from weft.edge.broker.config import CONFIG, DATABASE, GATEWAY, STRANGERS, Bounds, Listening
from weft.objects.errors import WeftError

pytestmark = pytest.mark.host
clock = SystemClock()
LIAR, VICTIM = ONE, OTHER  # devices


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.02)


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


class Site:
    """The brokers and the driver of a gateway, with a password for each of two devices."""

    def __init__(self, folder: Path) -> None:
        self.port, self.open_port = find_port(), find_port()
        self.broker = Broker(folder / "broker", Listening(port=self.port), Bounds(), clock)
        self.strangers = Broker(folder / "open", Listening(port=self.open_port), STRANGERS, clock, is_open=True)
        self.names = [(one.project, one.name) for one in (LIAR, VICTIM)]
        self.put_passwords("first")
        self.driver = MqttDriver(lambda: enter(self.broker), clock, lambda: enter(self.strangers))
        self.heard = RecordingListener()
        self.tasks: list[asyncio.Task[None]] = []

    def put_passwords(self, password: str) -> None:
        self.broker.put_devices(self.names, {f"{p}.{n}": self.broker.renew_hash("", password) for p, n in self.names})

    def begin(self, *brokers: Broker) -> None:
        self.tasks += [asyncio.create_task(one.keep()) for one in brokers]

    async def start(self) -> None:
        self.begin(self.broker, self.strangers)
        for thing in (LIAR, VICTIM):
            await self.driver.connect(thing)
        self.driver.observe(self.heard)
        await until(lambda: "" in self.heard.lines and listens(self.port) and listens(self.open_port))

    async def is_heard(self, thing: Thing = VICTIM, password: str = "first") -> None:
        """Returns when the gateway has heard the device."""
        values: dict[str, Value] = {"t": len(self.heard.values)}
        device = self.make_client(f"{thing.project}.{thing.name}", password)
        async with asyncio.timeout(60):
            while (thing.uid, values) not in self.heard.values:
                with contextlib.suppress(WeftError):
                    await device.publish(f"weft/{thing.project}/{thing.name}/reported", msgspec.json.encode(values))
                await asyncio.sleep(0.05)

    def make_client(self, user: str, password: str, name: str = "any") -> MqttClient:
        client = MqttClient(
            name, lambda: MqttLogin(("127.0.0.1", self.port), user, password), [], lambda _: None, clock
        )
        self.tasks.append(asyncio.create_task(client.keep()))
        return client

    async def close(self) -> None:
        await self.driver.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def enter(broker: Broker) -> MqttLogin:
    return MqttLogin(broker.path, GATEWAY, broker.password)


class Raw:
    """A client that may send what it likes."""

    def __init__(self, port: int, name: str, user: str = "", password: str = "") -> None:
        self.line = socket.create_connection(("127.0.0.1", port))
        self.line.settimeout(30)
        self.reader = Reader()
        self.line.sendall(
            write_connect(name, user, password, keep_alive=60, session_seconds=3600, clean=True, unacknowledged=1000)
        )
        assert self.read()[0][0] == CONNACK

    def read(self) -> list[tuple[int, int, bytes]]:
        """The next packets; none when the line has ended."""
        while True:
            try:
                data = self.line.recv(1 << 16)
            except OSError:
                return []
            if not data or (packets := self.reader.feed(data)):
                return packets if data else []


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="weft-edge-", dir="/tmp"))  # that the broker's user may pass through
    folder.chmod(0o711)
    made = Site(folder)
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(folder, ignore_errors=True)


async def test_a_device_that_takes_the_gateway_s_id_or_another_s_takes_nobody_s_place(site: Site) -> None:
    await site.start()
    victim = site.make_client("default.cold-2", "first")
    await until(lambda: victim.is_connected)
    lines = list(site.heard.lines)
    for name in (CLIENT, "default.cold-2", "any") * 4:
        liar = await asyncio.to_thread(Raw, site.port, name, "default.cold-1", "first")
        liar.line.close()
    await victim.publish("weft/default/cold-2/reported", b'{"t": 1}')  # on the line that it had
    await until(lambda: (VICTIM.uid, {"t": 1}) in site.heard.values)
    assert site.heard.lines == lines


@pytest.mark.parametrize("name", [CLIENT, "default.cold-2"])
async def test_a_stranger_without_a_username_who_names_a_client_s_id_crashes_no_broker_that_gets_new_files(
    site: Site, name: str
) -> None:
    await site.start()
    victim = site.make_client("default.cold-2", "first")
    await until(lambda: victim.is_connected)
    await asyncio.to_thread(Raw, site.port, name)
    site.put_passwords("second")  # it would forget that client's rights, and crash sooner or later: it begins anew
    await site.is_heard(VICTIM, "second")
    assert site.broker.starts == 2
    site.put_passwords("third")
    await site.is_heard(VICTIM, "third")
    assert site.broker.starts == 2  # nobody was forgotten since
    assert not (site.broker.path.parents[1] / ASIDE).exists()


async def test_strangers_who_fill_their_broker_end_neither_the_devices_nor_later_announcements(site: Site) -> None:
    await site.start()
    payload = b"x" * 16_000

    def fill() -> None:
        stranger = Raw(site.open_port, CLIENT)
        number = 0
        with contextlib.suppress(OSError):
            while number < 6000:  # 96 MB
                number += 1
                stranger.line.sendall(write_publish(f"homeassistant/a/r{number}/config", payload, retain=True))

    async def announce() -> None:
        birth = write_publish("homeassistant/sensor/d7/config", b'{"unique_id": "d7"}', retain=True)
        while not any(one.address == "d7" for one in await site.driver.discover()):
            with contextlib.suppress(OSError, AssertionError, IndexError):
                stranger = await asyncio.to_thread(Raw, site.open_port, "s")
                stranger.line.sendall(birth)
            await asyncio.sleep(0.2)

    await asyncio.to_thread(fill)
    await site.is_heard()
    await until(lambda: site.strangers.starts >= 2)
    assert site.broker.starts == 1
    async with asyncio.timeout(60):
        await announce()
    assert not (site.strangers.path.parent.parent / DATABASE).exists()


async def test_a_device_can_keep_no_announcement_in_the_devices_broker(site: Site) -> None:
    await site.start()
    liar = site.make_client("default.cold-1", "first")
    await until(lambda: liar.is_connected)
    for topic in ("homeassistant/sensor/d7/config", "spBv1.0/g/NBIRTH/n"):
        with pytest.raises(Exception, match="not authorised"):
            await liar.publish(topic, b'{"unique_id": "d7"}', retain=True)
    await site.is_heard()
    assert await site.driver.discover() == []


async def test_a_device_that_subscribes_to_everything_is_put_out_until_it_has_another_password(site: Site) -> None:
    await site.start()

    def subscribe() -> int:
        liar, sent = Raw(site.port, "any", "default.cold-1", "first"), 0
        deep = "/".join("y" * 100)
        with contextlib.suppress(OSError):
            while sent < 20_000:
                topics = [f"{sent + number}/{deep}" for number in range(100)]
                body = b"".join(struct.pack("!H", len(one)) + one.encode() + b"\1" for one in topics)
                packet = struct.pack("!HB", sent // 100 + 1, 0) + body
                head = len(packet)
                liar.line.sendall(b"\x82" + bytes((head & 0x7F | 0x80, head >> 7 & 0x7F | 0x80, head >> 14)) + packet)
                sent += 100
                if not (answer := liar.read()) or answer[0][0] == DISCONNECT:
                    break
        return sent

    sent = await asyncio.to_thread(subscribe)
    assert sent < 20_000
    await until(lambda: site.broker.is_put_out("default.cold-1"))
    assert not site.broker.is_put_out("default.cold-2")
    await site.is_heard()
    out = site.make_client("default.cold-1", "first")
    await until(lambda: "not authorised" in out.problem)
    site.put_passwords("second")
    await site.is_heard(LIAR, "second")
    assert site.broker.starts == 1 and not site.broker.is_put_out("default.cold-1")


async def test_messages_of_qos_2_which_a_device_could_pile_up_end_its_connection(site: Site) -> None:
    await site.start()

    def send() -> list[tuple[int, int, bytes]]:
        liar = Raw(site.port, "any", "default.cold-1", "first")
        message = write_publish("weft/default/cold-1/reported", b'{"t": 1}', id=1)
        liar.line.sendall(bytes((message[0] & ~0x06 | 0x04,)) + message[1:])
        return liar.read()

    answer = await asyncio.to_thread(send)
    assert answer[0][0] == DISCONNECT and answer[0][2] == b"\x9b"  # this quality isn't supported
    await site.is_heard()


async def test_a_database_that_can_t_be_read_is_put_aside_after_two_ends(site: Site) -> None:
    folder = site.broker.path.parent.parent
    (folder / "data").mkdir(parents=True)
    (folder / DATABASE).write_bytes(b"not a database" * 100)
    await site.start()
    await site.is_heard()
    assert site.broker.starts == 3
    assert (folder / ASIDE).read_bytes().startswith(b"not a database")


async def test_a_database_that_would_fill_the_memory_is_put_aside_before_the_start(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    folder = site.broker.path.parent.parent
    (folder / "data").mkdir(parents=True)
    with (folder / DATABASE).open("wb") as file:
        file.truncate(Bounds().memory_bytes // 2 + 1)
    await site.start()
    await site.is_heard()
    assert site.broker.starts == 1 and (folder / ASIDE).exists()
    assert any("is larger than 128 MiB; it is kept as" in one for one in caplog.messages)


async def test_who_has_the_devices_port_first_gets_no_password_and_costs_no_database(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "LONGEST_PAUSE_SECONDS", 0.2)
    folder = site.broker.path.parent.parent
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(1000))
        writer.close()

    await site.start()
    await site.is_heard()
    for task in site.tasks:
        task.cancel()
    await asyncio.gather(*site.tasks, return_exceptions=True)
    assert (folder / DATABASE).exists()
    thief = await asyncio.start_server(serve, "127.0.0.1", site.port)
    site.begin(site.broker)
    starts = site.broker.starts
    await until(lambda: site.broker.starts >= starts + 5)
    assert heard == b"" and not (folder / ASIDE).exists()
    thief.close()
    await thief.wait_closed()
    await site.is_heard()
    about = site.broker.path.parent.stat()
    assert about.st_mode & 0o077 == 0 and about.st_uid in (0, (folder / "rights").stat().st_uid)


async def test_the_gateway_s_password_is_another_after_each_start_of_the_broker(site: Site) -> None:
    await site.start()
    before = site.broker.password
    os.kill(site.broker.pid, 9)
    await until(lambda: site.broker.starts == 2 and site.broker.pid != 0)
    assert site.broker.password != before
    thief = site.make_client(GATEWAY, before)
    await until(lambda: "not authorised" in thief.problem)
    await site.is_heard()


async def test_a_broker_that_a_killed_gateway_left_is_ended_also_by_one_that_wants_none(site: Site) -> None:
    site.begin(site.strangers)
    await until(lambda: site.strangers.pid != 0)
    site.tasks[-1].cancel()
    await asyncio.gather(*site.tasks, return_exceptions=True)
    folder = site.strangers.path.parent.parent
    left = subprocess.Popen([require_program(), "-c", str(folder / CONFIG)], cwd=folder)
    try:
        await until(lambda: listens(site.open_port))
        (folder / "broker.pid").write_text(str(left.pid))
        (folder / "other").mkdir()
        (folder / "other" / "broker.pid").write_text(str(left.pid))  # the pid alone says nothing
        await end_former(folder / "other", clock)
        assert left.poll() is None
        ending = asyncio.create_task(end_former(folder, clock))
        await until(lambda: left.poll() is not None)
        await ending
    finally:
        left.kill()
        left.wait(60)
    assert not (folder / "broker.pid").exists()


async def test_what_a_device_left_for_those_who_come_later_is_cleared(site: Site) -> None:
    site.begin(site.broker)
    device = site.make_client("default.cold-2", "first")
    await until(lambda: device.is_connected)
    await device.publish("weft/default/cold-2/reported", b'{"t": 1}', retain=True)
    for thing in (LIAR, VICTIM):
        await site.driver.connect(thing)
    site.driver.observe(site.heard)
    await until(lambda: "" in site.heard.lines)
    await site.is_heard()
    assert {"t": 1} not in [values for _, values in site.heard.values] and site.heard.refused == []

    def look() -> list[int]:
        owner = Raw(site.port, "any", "default.cold-2", "first")
        topic = b"weft/default/cold-2/reported"
        owner.line.sendall(bytes((0x82, 6 + len(topic))) + b"\0\1\0" + struct.pack("!H", len(topic)) + topic + b"\1")
        return [kind for kind, _, _ in owner.read()]

    assert PUBLISH not in await asyncio.to_thread(look)

"""What every driver of devices promises, against the peer of its tests: devices that obey, and a line that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import pytest

from weft.contracts.device import AnnouncedDevice, DeviceDriver, Thing, Value
from weft.objects.errors import NotFound, TimedOut, Unavailable

SECONDS = 60.0


class RecordingListener:
    """A listener that remembers. Of a driver that asks again and again it keeps what is new."""

    def __init__(self) -> None:
        self.values: list[tuple[str, dict[str, Value]]] = []
        self.events: list[tuple[str, dict[str, Value]]] = []
        self.refused: list[tuple[str, str]] = []
        self.named: list[str] = []  # the members that were refused, "" for a whole message
        self.lines: list[str] = []
        self.reach: dict[str, str] = {}
        self._last: dict[str, dict[str, Value]] = {}

    def note_values(self, uid: str, values: Mapping[str, Value]) -> None:
        if values and self._last.get(uid) != values:
            self._last[uid] = dict(values)
            self.values.append((uid, dict(values)))

    def find_last(self, uid: str) -> dict[str, Value]:
        return self._last.get(uid, {})

    def note_event(self, uid: str, event: Mapping[str, Value]) -> None:
        self.events.append((uid, dict(event)))

    def note_refused(self, uid: str, reason: str, name: str = "") -> None:
        self.refused.append((uid, reason))
        self.named.append(name)

    def note_reach(self, uid: str, problem: str) -> None:
        self.reach[uid] = problem

    def note_line(self, problem: str) -> None:
        self.lines.append(problem)


class Peer(Protocol):
    """The other side: devices ``thing`` (it obeys what it is told, and reports it) and a line that can break."""

    driver: DeviceDriver
    one: Thing
    other: Thing
    announces: bool  # its devices make themselves known

    async def say(self, thing: Thing, values: Mapping[str, Value]) -> None: ...

    async def announce(self, found: AnnouncedDevice) -> None: ...

    async def cut(self) -> None:
        """The protocol's server dies, hard."""

    async def mend(self) -> None: ...


async def until(holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


async def until_works(driver: DeviceDriver) -> None:
    async with asyncio.timeout(SECONDS):
        while await driver.probe():
            await asyncio.sleep(0.02)


ONE = Thing("uid-1", "default", "cold-1")
OTHER = Thing("uid-2", "default", "cold-2")


class DeviceDriverContract:
    """A protocol's tests are a class of this with a fixture ``peer``; its driver knows no device yet."""

    async def test_the_listener_hears_what_each_device_says(self, peer: Peer) -> None:
        heard = RecordingListener()
        for thing in (peer.one, peer.other):
            await peer.driver.connect(thing)
        peer.driver.observe(heard)
        await until_works(peer.driver)
        said = [(peer.one, {"t": 4.5}), (peer.other, {"t": 5, "door": "open"}), (peer.one, {"t": 4.5, "fan": True})]
        for thing, values in said:
            await peer.say(thing, values)
            await until(lambda: heard.find_last(thing.uid) == values)  # noqa: B023
        for uid, found in heard.values:  # one that is asked may be asked in the middle of a change
            assert any(uid == thing.uid and found.items() <= values.items() for thing, values in said)

    async def test_what_is_written_is_what_the_device_reports_and_what_is_read(self, peer: Peer) -> None:
        heard = RecordingListener()
        await peer.driver.connect(peer.one)
        peer.driver.observe(heard)
        await until_works(peer.driver)
        await peer.say(peer.one, {"t": 4.0, "fan": False})
        await until(lambda: bool(heard.values))  # a driver may tell of two values one by one
        await peer.driver.write(peer.one.uid, "c1", {"fan": True}, 30.0)
        await until(lambda: heard.values[-1][1].get("fan") is True)
        assert await peer.driver.read(peer.one.uid, ["fan", "t", "other"]) == {"fan": True, "t": 4.0}

    async def test_a_device_that_is_not_connected_is_neither_heard_nor_written(self, peer: Peer) -> None:
        heard = RecordingListener()
        await peer.driver.connect(peer.one)
        await peer.driver.connect(peer.other)
        await peer.driver.disconnect(peer.one.uid)
        await peer.driver.disconnect(peer.one.uid)
        peer.driver.observe(heard)
        await until_works(peer.driver)
        await peer.say(peer.one, {"t": 1.0})
        await peer.say(peer.other, {"t": 2.0})
        await until(lambda: bool(heard.values))
        assert heard.values == [(peer.other.uid, {"t": 2.0})]
        with pytest.raises(NotFound):
            await peer.driver.write(peer.one.uid, "c1", {"fan": True}, 30.0)
        with pytest.raises(NotFound):
            await peer.driver.read(peer.one.uid, ["t"])

    async def test_a_command_whose_time_is_up_is_not_handed_over(self, peer: Peer) -> None:
        await peer.driver.connect(peer.one)
        peer.driver.observe(RecordingListener())
        await until_works(peer.driver)
        with pytest.raises(TimedOut):
            await peer.driver.write(peer.one.uid, "c1", {"fan": True}, 0.0)

    async def test_what_announces_itself_is_found_and_found_is_bounded(self, peer: Peer) -> None:
        heard = RecordingListener()
        peer.driver.observe(heard)
        await until_works(peer.driver)
        if not peer.announces:
            assert await peer.driver.discover() == []
            return
        for number in range(501):
            await peer.announce(AnnouncedDevice("", f"id-{number}", f"Sensor {number}", "Acme", "T1"))
        await until(lambda: ("", "found") in heard.refused)
        found = {one.address: one for one in await peer.driver.discover()}
        assert len(found) == 500
        assert (found["id-7"].name, found["id-7"].manufacturer, found["id-7"].model) == ("Sensor 7", "Acme", "T1")

    async def test_a_line_that_broke_is_told_and_works_again_by_itself(self, peer: Peer) -> None:
        heard = RecordingListener()
        await peer.driver.connect(peer.one)
        peer.driver.observe(heard)
        await until_works(peer.driver)
        await peer.say(peer.one, {"t": 1.0})
        await until(lambda: bool(heard.values))  # a driver may tell of two values one by one
        await peer.cut()
        await until(lambda: bool(heard.lines) and heard.lines[-1] != "")
        assert await peer.driver.probe() != ""
        with pytest.raises((Unavailable, TimedOut)):
            await peer.driver.write(peer.one.uid, "c1", {"fan": True}, 30.0)
        await peer.mend()
        await until_works(peer.driver)
        await peer.say(peer.one, {"t": 2.0})
        await until(lambda: heard.values[-1] == (peer.one.uid, {"t": 2.0}))
        await peer.driver.write(peer.one.uid, "c1", {"fan": True}, 30.0)
        await until(lambda: heard.values[-1][1].get("fan") is True)
        assert heard.lines[-1] == ""

"""The gateway's heart with devices in this process: twins, rules, commands, and what survives a kill."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from weft.contracts.clock import SystemClock
from weft.drivers.device.fake.driver import FakeDriver
from weft.edge.device.model import Device, Model, Property
from weft.edge.device.store import FILE, TwinStore
from weft.edge.device.twin import KeptTwin
from weft.edge.gateway import DeviceGateway
from weft.edge.rule.engine import Effect, Rule

MODEL = Model({"t": Property(minimum=-40, maximum=85), "fan": Property(type="boolean")})
MODELS = {("default", "cold"): MODEL}


def make_device(number: int = 1, **given: object) -> Device:
    return Device(f"u{number}", "default", f"cold-{number}", "cold", "fake", **given)  # type: ignore[arg-type]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[DeviceGateway, FakeDriver]]:
    clock = SystemClock()
    driver, store = FakeDriver(clock), TwinStore(folder)
    gateway = DeviceGateway({"fake": driver}, store, clock)
    task = asyncio.create_task(gateway.run())
    try:
        await until(lambda: "fake" in gateway.lines)
        yield gateway, driver
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        store.close()


async def test_a_desired_value_reaches_the_device_and_is_confirmed_by_what_it_reports(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        device = make_device(desired={"fan": True})
        await gateway.put_devices({"u1": device}, MODELS)
        assert gateway.twins["u1"].find_drift() == ["fan"]
        await until(lambda: gateway.twins["u1"].reported == {"fan": True})
        assert gateway.twins["u1"].find_drift() == []
        assert [one.outcome for one in gateway.twins["u1"].ended] == ["Confirmed"]
        driver.report("u1", {"fan": False})  # somebody turned it off by hand: that is drift, and no new command
        assert gateway.twins["u1"].find_drift() == ["fan"]


async def test_a_command_waits_for_the_line_and_expires_while_it_is_cut(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        driver.cut()
        now = SystemClock().now()
        lasting = make_device(1, desired={"fan": True})
        short = make_device(2, desired={"fan": True}, desired_until={"fan": now + 0.2})
        await gateway.put_devices({"u1": lasting, "u2": short}, MODELS)
        await until(lambda: [one.outcome for one in gateway.twins["u2"].ended] == ["Expired"])
        assert "cut" in gateway.twins["u1"].commands["fan"].problem
        driver.mend()
        await until(lambda: gateway.twins["u1"].reported == {"fan": True})
        assert gateway.twins["u2"].reported == {}


async def test_a_rule_sets_another_device_when_its_condition_holds(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        await gateway.put_devices({"u1": make_device(1), "u2": make_device(2)}, MODELS)
        rule = Rule("r", "default", "warm", "t > 8", then=(Effect("cold-2", {"fan": True}, 30.0), Effect(event="warm")))
        gateway.put_rules({"r": (rule, ["u1"])})
        driver.report("u1", {"t": 7})
        driver.report("u1", {"t": 9})
        await until(lambda: gateway.twins["u2"].reported == {"fan": True})
        assert gateway.fired["r"].count == 1


async def test_events_and_values_that_changed_wait_for_the_functions_that_they_invoke(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        await gateway.put_devices({"u1": make_device(1)}, MODELS)
        topics = ["weft/default/+/event", "weft/default/cold-1/reported/t"]
        gateway.triggers.put_topics("default", {"iot-handler": topics})
        for t in (9, 9, 200, 9.5):  # the same again, and what its model doesn't allow, invoke nothing
            driver.report("u1", {"t": t, "fan": True})
        gateway.note_event("u1", {"alarm": "door"})
        batch = gateway.triggers.take()
        assert batch is not None and [one.data for one in batch[1]] == [{"t": 9}, {"t": 9.5}, {"alarm": "door"}]
        gateway.triggers.settle(batch[0], batch[1])
        for n in range(500):  # a device that floods is heard as often as it may speak
            gateway.note_event("u1", {"n": n})
        assert gateway.triggers.count <= 210 and gateway.twins["u1"].refused["rate"] >= 290


async def test_what_was_refused_of_a_device_is_still_said_when_the_devices_are_listed_again(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        devices = {"u1": make_device(1)}
        await gateway.put_devices(devices, MODELS)
        gateway.note_values("u1", {"t": 9})
        gateway.note_refused("u1", "type", "fan")
        await gateway.put_devices(devices, MODELS)
        assert gateway.twins["u1"].problem == "fan: its value is refused: type" and gateway.messages == 1
        driver.report("u1", {"t": 9})
        assert gateway.twins["u1"].problem == ""


async def test_a_rule_that_names_a_device_of_another_gateway_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        await gateway.put_devices({"u1": make_device(1)}, MODELS)
        rule = Rule("r", "default", "warm", "t > 8", then=(Effect("far", {"fan": True}, 30.0),))
        gateway.put_rules({"r": (rule, ["u1"]), "bad": (Rule("bad", "default", "b", "t >"), ["u1"])})
        driver.report("u1", {"t": 9})
        assert "'far' isn't one of this gateway" in gateway.fired["r"].problem
        assert "missing" in gateway.rule_problems["bad"]


async def test_twins_commands_and_counts_survive_a_kill(tmp_path: Path) -> None:
    device = make_device(desired={"fan": True})
    rule = Rule("r", "default", "warm", "t > 8", then=(Effect(event="warm"),))
    async with running(tmp_path) as (gateway, driver):
        await gateway.put_devices({"u1": device}, MODELS)
        gateway.put_rules({"r": (rule, ["u1"])})
        await until(lambda: bool(gateway.twins["u1"].ended))
        driver.report("u1", {"t": 9.5})
        await gateway.save()
        for name in (FILE, FILE + "-wal"):  # as the disk has them at this instant
            (tmp_path / "killed").mkdir(exist_ok=True)
            (tmp_path / "killed" / name).write_bytes((tmp_path / name).read_bytes())
    async with running(tmp_path / "killed") as (gateway, driver):
        await gateway.put_devices({"u1": device}, MODELS)
        twin = gateway.twins["u1"]
        assert (twin.reported, twin.find_drift()) == ({"fan": True, "t": 9.5}, [])
        assert twin.find_phase(SystemClock().elapsed()) == "Online"
        assert not any(one.is_open for one in twin.commands.values())
        assert gateway.fired["r"].count == 1


async def test_a_device_that_is_gone_is_forgotten_on_disk_too(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        await gateway.put_devices({"u1": make_device()}, MODELS)
        driver.report("u1", {"t": 1})
        await gateway.save()
        await gateway.put_devices({}, MODELS)
        driver.report("u1", {"t": 2})
        await gateway.save()
    store = TwinStore(tmp_path)
    assert store.load_twins() == {}
    store.close()


def test_a_file_that_cannot_be_read_is_kept_aside_and_begun_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 1000)
    store = TwinStore(tmp_path)
    store.save_twins({"u1": msgspec.json.encode(KeptTwin({"t": 1.0}))})
    assert store.load_twins()["u1"].reported == {"t": 1.0}
    store.close()
    assert (tmp_path / "gateway.broken").read_bytes().startswith(b"not a database")


async def test_a_full_disk_is_told_and_nothing_is_lost_when_there_is_room_again(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        await gateway.put_devices({"u1": make_device()}, MODELS)
        driver.report("u1", {"t": 1})
        whole = gateway._store._base
        gateway._store._base = sqlite3.connect(":memory:")  # has no table
        await gateway.save()
        assert gateway.save_problem
        gateway._store._base = whole
        await gateway.save()
        assert not gateway.save_problem
        assert gateway._store.load_twins()["u1"].reported == {"t": 1}


async def test_a_device_that_cannot_be_reached_says_why_until_it_is(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, _):
        await gateway.put_devices({"u1": make_device()}, MODELS)
        twin = gateway.twins["u1"]
        gateway.note_reach("u1", "10.0.0.7:502 doesn't answer in time")
        await gateway.put_devices({"u1": make_device()}, MODELS)  # whatever else changes meanwhile
        assert twin.problem == "10.0.0.7:502 doesn't answer in time"
        gateway.note_reach("u1", "")
        assert twin.problem == ""
        gateway.note_reach("stranger", "no")


async def test_an_integer_of_hundreds_of_digits_is_refused_and_the_rest_of_the_message_is_heard(tmp_path: Path) -> None:
    model = Model({"t": Property(), "n": Property(type="integer"), "fan": Property(type="boolean")})
    async with running(tmp_path) as (gateway, driver):
        await gateway.put_devices({"u1": make_device()}, {("default", "cold"): model})
        for huge in (10**400, -(10**4299)):
            driver.report("u1", {"t": huge, "n": huge, "fan": True})
        assert gateway.twins["u1"].reported == {"fan": True}
        assert gateway.twins["u1"].refused == {"range": 4}


async def test_a_driver_that_fails_at_a_command_is_asked_again_with_pauses_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, driver):
        tried = 0

        async def fail(*given: object, **more: object) -> None:
            nonlocal tried
            tried += 1
            raise RuntimeError("met something unexpected")

        driver.write = fail  # type: ignore[method-assign]
        await gateway.put_devices({"u1": make_device(desired={"fan": True})}, MODELS)
        command = gateway.twins["u1"].commands["fan"]
        await until(lambda: command.tries == 1)
        assert command.problem == "its driver failed: RuntimeError; the gateway's log has more"
        assert command.next_at > SystemClock().elapsed()
        assert tried == 1

"""What the gateway tells a cache: each device's newest state for a time, and never at a device's expense."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.clock import SystemClock
from weft.contracts.edge.cache import MOST_PUT_BYTES
from weft.contracts.edge.model_runner import ModelFile
from weft.drivers.cache.sqlite.driver import SqliteCache
from weft.drivers.device.fake.driver import FakeDriver
from weft.edge.cache.publisher import TOGETHER, TwinPublisher
from weft.edge.device.model import Device, Model, Property, SamplingWindow
from weft.edge.device.store import TwinStore
from weft.edge.device.twin import Twin
from weft.edge.gateway import DeviceGateway
from weft.edge.model.engine import Decision, DecisionModel, DecisionOutcome
from weft.edge.rule.engine import Effect, Rule
from weft.objects.errors import Unavailable

MODEL = Model({"t": Property(windows=(SamplingWindow(1, ("mean",)),)), "fan": Property(type="boolean")})


class HandClock(SystemClock):
    at = 1000.0

    def now(self) -> float:
        return 1_700_000_000 + self.at

    def elapsed(self) -> float:
        return self.at


class MemoryCache:
    """A cache in this process, which can be dead, or stuck."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.puts: list[int] = []
        self.problem = ""
        self.is_stuck = False

    async def get(self, key: str) -> bytes | None:
        return None

    async def put(self, values: Mapping[str, bytes], seconds: float) -> None:
        if self.is_stuck:
            await asyncio.Event().wait()
        if self.problem:
            raise Unavailable(self.problem)
        assert sum(map(len, values.values())) <= MOST_PUT_BYTES
        self.puts.append(len(values))
        self.values.update({key: msgspec.json.decode(body) for key, body in values.items()})

    async def delete(self, keys: Sequence[str]) -> None:
        if self.problem:
            raise Unavailable(self.problem)
        for key in keys:
            self.values.pop(key, None)

    async def close(self) -> None: ...


def make_device(number: int) -> Device:
    return Device(f"u{number}", "default", f"cold-{number}", "cold", "fake")


def make_publisher(count: int) -> tuple[TwinPublisher, MemoryCache, HandClock, dict[str, Twin]]:
    clock, cache = HandClock(), MemoryCache()
    twins = {f"u{number}": Twin(make_device(number), MODEL, 100.0, clock.at) for number in range(count)}
    publisher = TwinPublisher(cache, clock, "n1", 60)
    publisher.serve(twins, clock.now)
    return publisher, cache, clock, twins


def decide(publisher: TwinPublisher, name: str, value: bool | None, device: str = "u0") -> None:
    model = DecisionModel(name, "default", name, ModelFile("0", 1), ("t",), DecisionOutcome(set="fan"))
    publisher.note_decision(Decision(model, device, value, "model"))


async def test_a_device_s_newest_state_replaces_the_one_that_waited() -> None:
    publisher, cache, clock, twins = make_publisher(1)
    for t in (3.0, 4.0, 5.0):
        twins["u0"].take_values({"t": t, "fan": True}, clock.at, clock.now())
        publisher.note("u0")
    assert not await publisher.publish()
    assert cache.values["weft:twin:default:cold-0"] == {
        "project": "default",
        "device": "cold-0",
        "phase": "Online",
        "seen_at": 1_700_001_000.0,
        "at": 1_700_001_000.0,
        "reported": {"t": 5.0, "fan": True},
        "measures": {},
        "models": {},
    }
    assert publisher.counts.replaced == 2 and publisher.counts.written == 1
    assert cache.values["weft:gateway:n1"]["devices"] == 1


async def test_what_models_decided_is_there_until_they_no_longer_decide() -> None:
    publisher, cache, _, _ = make_publisher(1)
    decide(publisher, "defrost", True)
    decide(publisher, "door", None)  # its fallback says nothing
    decide(publisher, "defrost", False, device="u9")  # gone meanwhile
    await publisher.publish()
    found = cache.values["weft:twin:default:cold-0"]["models"]
    assert found == {"defrost": {"value": True, "by": "model", "at": 1_700_001_000.0}}
    for number in range(200):
        decide(publisher, f"m{number}", True)
    await publisher.publish()
    assert len(cache.values["weft:twin:default:cold-0"]["models"]) == 50
    publisher.keep_results({"u0": {"m199"}})
    await publisher.publish()
    assert list(cache.values["weft:twin:default:cold-0"]["models"]) == ["m199"]


async def test_all_is_written_again_after_a_third_of_its_time_so_that_a_cache_may_forget() -> None:
    publisher, cache, clock, twins = make_publisher(2 * TOGETHER + 1)
    for uid in twins:
        publisher.note(uid)
    assert [await publisher.publish() for _ in range(4)] == [True, True, False, False]
    assert len(cache.values) == 2 * TOGETHER + 2
    cache.values.clear()
    clock.at += 19.9
    await publisher.publish()
    assert cache.values == {}
    clock.at += 0.1
    for _ in range(3):
        await publisher.publish()
    assert len(cache.values) == 2 * TOGETHER + 2
    assert max(cache.puts) == TOGETHER + 1


async def test_a_dead_cache_gets_only_the_newest_when_it_is_back_and_deletions_too() -> None:
    publisher, cache, clock, twins = make_publisher(3)
    for uid in twins:
        publisher.note(uid)
    await publisher.publish()
    cache.problem = "dead"
    for t in range(1000):
        twins["u0"].take_values({"t": float(t)}, clock.at + t, clock.now())
        publisher.note("u0")
        with contextlib.suppress(Unavailable):
            await publisher.publish()
    publisher.note_gone(twins.pop("u1"))
    publisher.note_gone(twins["u2"])
    publisher.note("u2")  # it is one of this gateway again
    cache.problem = ""
    await publisher.publish()
    assert cache.values["weft:twin:default:cold-0"]["reported"] == {"t": 999.0}
    assert cache.values.keys() == {"weft:twin:default:cold-0", "weft:twin:default:cold-2", "weft:gateway:n1"}
    assert len(cache.puts) == 2


async def test_what_waits_is_bounded_and_a_twin_that_is_too_large_is_dropped_and_counted() -> None:
    publisher, cache, clock, twins = make_publisher(20)
    model = Model({f"p{number}": Property(type="string") for number in range(200)})
    for twin in twins.values():
        twin.take_model(model)
        for start in range(0, 200, 40):
            texts = {f"p{number}": "\x01" * 1000 for number in range(start, start + 40)}  # six bytes each in JSON
            assert twin.take_values(texts, clock.at, clock.now())
        publisher.note(twin.device.uid)
    while await publisher.publish():
        pass
    assert publisher.counts.dropped == 20 and list(cache.values) == ["weft:gateway:n1"]
    cache.puts.clear()
    for twin in twins.values():
        twin.reported = dict(list(twin.reported.items())[:150])  # 900 kB each
        publisher.note(twin.device.uid)
    while await publisher.publish():
        pass
    assert len(cache.values) == 21 and cache.puts == [1] * 20  # so that encoding them holds up nobody for long
    gone = [Twin(make_device(number), MODEL, 1.0, 0.0) for number in range(6000)]
    cache.problem = "dead"
    for twin in gone:
        publisher.note_gone(twin)
    assert publisher.counts.dropped == 20 + 1000


async def test_a_stuck_cache_delays_no_device_and_no_rule(tmp_path: Path) -> None:
    cache, clock, store = MemoryCache(), SystemClock(), TwinStore(tmp_path)
    driver = FakeDriver(clock)
    publisher = TwinPublisher(cache, clock, "n1", 60)
    gateway = DeviceGateway({"fake": driver}, store, clock, publisher=publisher)
    cache.is_stuck = True
    running = asyncio.create_task(gateway.run())
    async with asyncio.timeout(60):
        while "fake" not in gateway.lines:
            await asyncio.sleep(0.01)
        await gateway.put_devices({"u1": make_device(1), "u2": make_device(2)}, {("default", "cold"): MODEL})
        rule = Rule("r", "default", "warm", "t > 8", then=(Effect("cold-2", {"fan": True}, 30.0),))
        gateway.put_rules({"r": (rule, ["u1"])})
        driver.report("u1", {"t": 9})
        while gateway.twins["u2"].reported != {"fan": True}:
            await asyncio.sleep(0.01)
        assert cache.values == {}
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert set(TwinStore(tmp_path).load_twins()) == {"u1", "u2"}  # saved all the same
    store.close()


async def test_the_gateway_writes_its_twins_to_a_file_that_another_program_reads(tmp_path: Path) -> None:
    clock, store = SystemClock(), TwinStore(tmp_path)
    cache, reader, driver = SqliteCache(tmp_path, clock), SqliteCache(tmp_path, clock), FakeDriver(clock)
    gateway = DeviceGateway({"fake": driver}, store, clock, publisher=TwinPublisher(cache, clock, "n1", 60))
    running = asyncio.create_task(gateway.run())

    async def read(name: str) -> Any:
        body = await reader.get(f"weft:twin:default:{name}")
        return msgspec.json.decode(body) if body is not None else None

    async with asyncio.timeout(60):
        await gateway.put_devices({"u1": make_device(1), "u2": make_device(2)}, {("default", "cold"): MODEL})
        while "fake" not in gateway.lines:
            await asyncio.sleep(0.01)
        driver.report("u1", {"t": 4.5})
        while ((await read("cold-1")) or {}).get("reported") != {"t": 4.5}:
            await asyncio.sleep(0.02)
        while ((await read("cold-1")) or {}).get("measures") != {"t.mean1": 4.5}:
            driver.report("u1", {"t": 4.5})
            await asyncio.sleep(0.02)
        while ((await read("cold-2")) or {}).get("phase") != "Offline":
            await asyncio.sleep(0.02)
        await gateway.put_devices({"u1": make_device(1)}, {("default", "cold"): MODEL})
        while await read("cold-2") is not None:
            await asyncio.sleep(0.02)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    for one in (cache, reader):
        await one.close()
    store.close()

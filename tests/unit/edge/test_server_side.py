"""The server's objects as the gateway reads them, and what it reports."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.device import AnnouncedDevice
from weft.edge.device.command import Command
from weft.edge.device.model import Device, Model, Property
from weft.edge.device.store import TwinStore
from weft.edge.device.twin import Twin
from weft.edge.gateway import DeviceGateway
from weft.edge.rule.engine import Fired
from weft.edge.server.link import ServerLink
from weft.edge.server.objects import read_objects
from weft.edge.server.report import Sent, note_sent, plan_report
from weft.objects.errors import NotFound, Unavailable
from weft.protocol.devices import MOST_DEVICE_BYTES, MOST_DEVICES, MOST_FOUND, MOST_MESSAGE_BYTES, DeviceMessage

MODEL = Model({"t": Property(deadband=0.5), "fan": Property(type="boolean")})


def write(kind: str, name: str, spec: dict[str, object], **more: object) -> bytes:
    return msgspec.json.encode({"kind": kind, "name": name, "uid": f"uid-{name}", "project": "p", "spec": spec, **more})


def test_devices_models_and_rules_are_read_as_the_gateway_uses_them() -> None:
    room = {"room": "1"}
    devices = [
        write("device", "a", {"node": "n1", "model": "m"}, labels=room, actions={"desired_until": {"fan": 12.5}}),
        write("device", "b", {"node": "n1", "approved": False}),
        write("device", "c", {"node": "n2"}),
        write("device", "d", {"node": "n1"}, deleting_since=5.0),
        write("device", "e", {"node": "n1", "model": "other"}),
        b'{"broken": 1}',
    ]  # fmt: skip
    models = [
        write("devicemodel", "m", {"properties": {"t": {"type": "number", "windows": [{"seconds": 60, "of": ["mean"]}]}}, "new": 1})
    ]  # fmt: skip
    rules = [
        write("rule", "r", {"when": "t > 8", "devices": {"labels": {"room": "1"}}, "then": [{"set": {"fan": True}}]}),
        write("rule", "s", {"when": "t > 8", "node": "n2", "then": []}),
    ]
    wanted = read_objects(devices, models, rules, "n1")
    assert set(wanted.devices) == {"uid-a", "uid-e"}
    assert read_objects(devices, models, rules, "n1", "p").devices.keys() == {"uid-a", "uid-e"}
    assert read_objects(devices, models, rules, "n1", "another").devices == {}
    assert wanted.devices["uid-a"].desired_until == {"fan": 12.5}
    assert wanted.models["p", "m"].properties["t"].windows[0].of == ("mean",)
    assert wanted.unread == 1
    [(rule, chosen)] = wanted.rules.values()
    assert (rule.name, chosen, rule.then[0].set) == ("r", ["uid-a"], {"fan": True})


def make(number: int = 1) -> Twin:
    twin = Twin(Device(f"u{number}", "p", f"d{number}", "m"), MODEL, 1000.0, 0.0)
    twin.take_values({"t": 1.0}, 0.0, 0.0)
    twin.told_phase = "Online"
    return twin


def ask(twins: dict[str, Twin], sent: Sent, at: float) -> list[str]:
    report = plan_report(twins, [], {}, {}, sent, at, at, at)
    note_sent(report, twins, sent, at)
    return [one.uid for one in report.devices]


def test_values_are_told_when_they_leave_the_deadband_and_at_most_once_in_ten_seconds() -> None:
    twin, sent = make(), Sent()
    twins = {"u1": twin}
    assert ask(twins, sent, 0.0) == ["u1"]
    assert ask(twins, sent, 1.0) == []
    twin.take_values({"t": 1.4}, 2.0, 0.0)
    assert ask(twins, sent, 20.0) == []
    twin.take_values({"t": 3.0}, 21.0, 0.0)
    assert ask(twins, sent, 21.0) == ["u1"]
    twin.take_values({"t": 9.0}, 22.0, 0.0)
    assert [at for at in range(22, 50) if ask(twins, sent, float(at))] == [31]


def test_a_phase_and_the_end_of_a_command_are_told_at_once() -> None:
    twin, sent = make(), Sent()
    twins = {"u1": twin}
    ask(twins, sent, 0.0)
    twin.begin(Command("c", "fan", True))
    twin.take_values({"fan": True}, 1.0, 100.0)
    report = plan_report(twins, [], {}, {}, sent, 1.0, 103.0, 0.0)
    [command] = report.devices[0].commands
    assert (command.property, command.outcome, command.seconds_ago) == ("fan", "Confirmed", 3.0)
    note_sent(report, twins, sent, 1.0)
    twin.told_phase = twin.find_phase(61.0)
    assert [one.phase for one in plan_report(twins, [], {}, {}, sent, 61.0, 0.0, 0.0).devices] == ["Stale"]


def test_a_problem_that_changes_while_a_report_is_on_its_way_is_told_with_the_next_one() -> None:
    twin, sent = make(), Sent()
    twins, twin.obstacle = {"u1": twin}, "it has no credentials"
    report = plan_report(twins, [], {}, {}, sent, 0.0, 0.0, 0.0)
    twin.obstacle = ""
    note_sent(report, twins, sent, 0.0)
    assert [one.problem for one in plan_report(twins, [], {}, {}, sent, 1.0, 1.0, 1.0).devices] == [""]


def test_a_report_is_bounded_and_the_rest_comes_with_the_next_one() -> None:
    twins = {f"u{number}": make(number) for number in range(1200)}
    sent = Sent()
    assert [len(ask(twins, sent, at)) for at in (0.0, 1.0, 2.0, 3.0)] == [MOST_DEVICES, MOST_DEVICES, 200, 0]
    found = [AnnouncedDevice("mqtt", f"a{number}", f"n{number}", "Acme") for number in range(150)]
    report = plan_report({}, found, {}, {}, sent, 4.0, 0.0, 0.0)
    assert len(report.found) == MOST_FOUND
    note_sent(report, twins, sent, 4.0)
    assert len(plan_report({}, found, {}, {}, sent, 5.0, 0.0, 0.0).found) == 50


def test_values_that_are_too_large_for_the_server_are_left_out_with_words() -> None:
    twin = Twin(Device("u1", "p", "d", "m"), Model({f"p{n}": Property(type="string") for n in range(60)}), 1000.0, 0.0)
    twin.take_values({f"p{n}": "x" * 1000 for n in range(60)}, 0.0, 0.0)
    [one] = plan_report({"u1": twin}, [], {}, {}, Sent(), 0.0, 0.0, 0.0).devices
    assert 0 < len(msgspec.json.encode(one.reported)) <= MOST_DEVICE_BYTES
    assert "left out" in one.problem


def test_devices_whose_values_are_many_bytes_come_in_reports_that_the_server_takes() -> None:
    model = Model({f"p{n}": Property(type="string") for n in range(16)})
    twins = {f"u{number}": Twin(Device(f"u{number}", "p", "d", "m"), model, 1000.0, 0.0) for number in range(300)}
    for twin in twins.values():
        twin.take_values({f"p{n}": "x" * 990 for n in range(16)}, 0.0, 0.0)
    sent, told = Sent(), list[str]()
    while (report := plan_report(twins, [], {}, {}, sent, 1.0, 1.0, 1.0)).devices:
        assert len(msgspec.json.encode(report)) < 4_000_000
        note_sent(report, twins, sent, 1.0)
        told += [one.uid for one in report.devices]
    assert told == list(twins)


def test_a_rules_count_is_told_with_its_age_once() -> None:
    sent = Sent()
    report = plan_report({}, [], {"r": Fired(3, 90.0)}, {"s": "broken"}, sent, 0.0, 0.0, 100.0)
    assert sorted((one.uid, one.fired, one.seconds_ago, one.problem) for one in report.rules) == [
        ("r", 3, 10.0, ""),
        ("s", 0, None, "broken"),
    ]
    note_sent(report, {}, sent, 0.0)
    assert plan_report({}, [], {"r": Fired(3, 90.0)}, {"s": "broken"}, sent, 0.0, 0.0, 100.0).rules == []


def test_two_protocols_at_one_address_are_two_found_devices() -> None:
    sent = Sent()
    first, second = AnnouncedDevice("coap", "192.168.7.30", "a"), AnnouncedDevice("opcua", "192.168.7.30", "b")
    report = plan_report({}, [first], {}, {}, sent, 0.0, 0.0, 0.0)
    note_sent(report, {}, sent, 0.0)
    told = plan_report({}, [first, second], {}, {}, sent, 1.0, 1.0, 1.0).found
    assert [(one.protocol, one.address) for one in told] == [("opcua", "192.168.7.30")]


async def test_a_full_disk_keeps_no_device_from_being_served(tmp_path: Path) -> None:
    clock, store = SystemClock(), TwinStore(tmp_path)
    gateway = DeviceGateway({}, store, clock)
    client: Any = SimpleNamespace(http=SimpleNamespace())
    link = ServerLink(client, "n1", gateway, {}, store, clock)
    raw = write("device", "cold-1", {"node": "n1", "model": "cold"})
    link._take("device", ("default", "cold-1"), raw)

    def refuse(*given: object, **more: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    store.save_objects = refuse  # type: ignore[method-assign]
    await link._apply()
    assert len(gateway.twins) == 1
    store.close()


async def test_messages_wait_while_the_line_is_cut_and_those_that_nobody_takes_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, store = SystemClock(), TwinStore(tmp_path)
    gateway = DeviceGateway({}, store, clock)
    client: Any = SimpleNamespace(http=SimpleNamespace())
    link = ServerLink(client, "n1", gateway, {}, store, clock)
    taken: list[tuple[str, list[str]]] = []
    told: list[tuple[str, int, int]] = []
    answers = [Unavailable("cut"), Unavailable("cut"), NotFound("no topic invokes it"), None]

    def ask_ticket(_: Any, node: str, function: str, dropped: int, too_large: int) -> dict[str, str]:
        told.append((function, dropped, too_large))
        return {"for": function}

    def send_messages(_: Any, ticket: dict[str, str], messages: list[DeviceMessage]) -> None:
        taken.append((ticket["for"], [one.id for one in messages]))
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr("weft.edge.server.link.ask_ticket", ask_ticket)
    monkeypatch.setattr("weft.edge.server.link.send_messages", send_messages)
    gateway.triggers.put_topics("p", {"gone": ["weft/p/a/event"], "there": ["weft/p/b/event"]})
    gateway.triggers.note_event("p", "a", {"n": 1}, 5.0)
    gateway.triggers.note_event("p", "b", {"n": 2}, 5.0)
    gateway.triggers.note_event("p", "b", {"n": "x" * MOST_MESSAGE_BYTES}, 5.0)
    task = asyncio.create_task(link._keep_invoking())
    async with asyncio.timeout(60):
        while gateway.triggers.count:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [function for function, _ in taken] == ["gone", "there", "gone", "there"]
    assert told == [("gone", 0, 0), ("there", 1, 1), ("gone", 0, 0), ("there", 0, 0)], "nobody is told twice"
    assert taken[0] == taken[2] and taken[1] == taken[3], "the same messages under the same ids"
    store.close()


async def test_a_cut_line_is_said_once_and_so_is_its_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, store = SystemClock(), TwinStore(tmp_path)
    client: Any = SimpleNamespace(http=SimpleNamespace())
    link = ServerLink(client, "n1", DeviceGateway({}, store, clock), {}, store, clock)
    assert link.problem  # as at its start, and as the watches note it first
    answers: list[Exception | None] = [Unavailable("cut"), Unavailable("cut"), None, Unavailable("cut again"), None]

    async def report_once() -> float:
        if (answer := answers.pop(0)) is not None:
            link._note_trouble(answer)
            raise answer
        return 0.0

    monkeypatch.setattr(link, "_report_once", report_once)
    monkeypatch.setattr(link._draw, "uniform", lambda low, high: 0.0)
    with caplog.at_level("INFO"):
        task = asyncio.create_task(link._keep_reporting())
        async with asyncio.timeout(60):
            while answers:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    said = [record.message for record in caplog.records if "reports" in record.message]
    again = "the server takes reports again"
    assert said == [
        "the server doesn't take reports: cut",
        again,
        "the server doesn't take reports: cut again",
        again,
    ]
    store.close()

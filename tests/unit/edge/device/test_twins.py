"""Twins: phases, drift, commands that expire, and what survives."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.contracts.device import Value
from weft.edge.device.check import check_value
from weft.edge.device.command import Command, find_next, note_try, plan_sendings
from weft.edge.device.model import Device, Model, Property, SamplingWindow
from weft.edge.device.twin import MOST_ENDED, KeptTwin, Twin, plan_desired, refuse_member

MODEL = Model(
    {
        "temperature": Property(
            minimum=-40, maximum=85, deadband=0.5, read_only=True, windows=(SamplingWindow(10, ("mean",)),)
        ),
        "setpoint": Property(minimum=-30, maximum=10),
        "door": Property(type="string", enum=("open", "shut")),
    },
    stale_seconds=30,
    offline_seconds=100,
)


def make(kept: KeptTwin | None = None, age: float = 0.0, rate: float = 1000.0, **desired: float) -> Twin:
    device = Device("u1", "default", "cold-1", "cold", desired=dict(desired))
    return Twin(device, MODEL, rate, 0.0, kept, age)


def test_a_device_is_offline_online_stale_and_offline_again() -> None:
    twin = make()
    assert twin.find_phase(0) == "Offline"
    twin.take_values({"temperature": 4.0}, 1.0, 0)
    assert [twin.find_phase(at) for at in (1.0, 30.9, 31.0, 100.9, 101.0)] == [
        "Online", "Online", "Stale", "Stale", "Offline",
    ]  # fmt: skip


def test_what_cannot_be_is_counted_and_the_rest_of_the_message_is_taken() -> None:
    twin = make()
    assert twin.take_values({"temperature": 400, "door": "open", "colour": 1, "setpoint": True}, 1.0, 0)
    assert twin.reported == {"door": "open"}
    assert twin.refused == {"range": 1, "unknown": 1, "type": 1}
    assert "setpoint" in twin.problem


def test_a_device_that_only_lies_is_not_heard() -> None:
    twin = make()
    assert not twin.take_values({"temperature": "hot"}, 1.0, 0)
    assert twin.find_phase(1.0) == "Offline"


def test_a_flood_is_refused_beyond_the_rate_and_so_is_a_message_with_too_much() -> None:
    twin = make(rate=5.0)
    for _ in range(100):
        twin.take_values({"temperature": 4.0}, 1.0, 0)
    assert twin.refused == {"rate": 90}
    twin = make()
    twin.take_values({f"p{number}": number for number in range(101)}, 1.0, 0)
    assert twin.refused == {"size": 1}


def test_a_desired_value_makes_one_command_which_is_repeated_until_the_device_reports_it() -> None:
    twin = make(setpoint=-18)
    ids = map(str, count())
    [command] = plan_desired(twin, lambda: next(ids))
    twin.begin(command)
    assert plan_desired(twin, lambda: next(ids)) == []
    sent = []
    elapsed = 0.0
    for _ in range(12):
        for sending in plan_sendings(twin.commands, 1000.0 + elapsed, elapsed)[0]:
            sent.append(elapsed)
            note_try(sending.command, elapsed)
        elapsed = find_next(twin.commands) or 0.0
    assert sent[:7] == [0, 1, 3, 7, 15, 31, 63]
    assert sent[-1] - sent[-2] == 60
    assert twin.find_drift() == ["setpoint"]
    twin.take_values({"setpoint": -18.0}, elapsed, 2000.0)
    assert (command.outcome, command.ended_at, twin.find_drift()) == ("Confirmed", 2000.0, [])
    assert plan_sendings(twin.commands, 1e9, 1e9) == ([], [])


def test_a_command_is_never_sent_after_its_time() -> None:
    twin = make()
    twin.begin(Command("a", "setpoint", -18, until=130.0))
    [sending] = plan_sendings(twin.commands, 100.0, 5.0)[0]
    assert sending.seconds == 30.0
    sendings, expired = plan_sendings(twin.commands, 130.0, 35.0)
    assert (sendings, [one.outcome for one in expired]) == ([], ["Expired"])
    assert plan_sendings(twin.commands, 90.0, 36.0) == ([], [])  # also when the clock is set back


def test_what_was_not_there_in_time_is_no_drift() -> None:
    twin = make(setpoint=-18)
    twin.device = msgspec.structs.replace(twin.device, desired_until={"setpoint": 130.0})
    [command] = plan_desired(twin, lambda: "a")
    twin.begin(command)
    assert twin.find_drift() == ["setpoint"]
    plan_sendings(twin.commands, 131.0, 0.0)
    assert twin.find_drift() == []


def test_the_newest_command_of_a_property_replaces_the_one_before() -> None:
    twin = make(setpoint=-18)
    twin.begin(plan_desired(twin, lambda: "a")[0])
    twin.begin(Command("b", "setpoint", -25, until=50.0, source="too-warm"))
    assert [one.command.id for one in plan_sendings(twin.commands, 0.0, 0.0)[0]] == ["b"]


def test_a_desired_value_that_is_taken_back_is_not_sent_any_more() -> None:
    twin = make(setpoint=-18)
    twin.begin(plan_desired(twin, lambda: "a")[0])
    twin.device = Device("u1", "default", "cold-1", "cold")
    assert plan_desired(twin, lambda: "b") == []
    assert plan_sendings(twin.commands, 0.0, 0.0) == ([], [])


def test_a_desired_value_that_the_model_does_not_allow_is_refused_with_words() -> None:
    twin = make()
    for name, value in (("temperature", 4.0), ("setpoint", 50), ("colour", 1)):
        twin.begin(Command(name, name, value))
    assert {one.name: (one.outcome, one.problem) for one in twin.ended} == {
        "temperature": ("Refused", "it is read-only"),
        "setpoint": ("Refused", "the value is refused: range"),
        "colour": ("Refused", "it is not a property of the model"),
    }
    assert plan_sendings(twin.commands, 0.0, 0.0) == ([], [])


def test_what_is_told_of_commands_is_bounded() -> None:
    twin = make()
    for number in range(50):
        twin.begin(Command(str(number), "colour", number))
    assert [one.id for one in twin.ended] == [str(number) for number in range(50 - MOST_ENDED, 50)]


def test_a_twin_survives_the_process_with_its_commands_and_its_age() -> None:
    twin = make(setpoint=-18)
    twin.take_values({"temperature": 4.0, "door": "shut"}, 10.0, 0)
    twin.begin(plan_desired(twin, lambda: "a")[0])
    note_try(next(iter(twin.commands.values())), 10.0)
    kept = msgspec.json.decode(msgspec.json.encode(twin.keep(20.0, 1000.0)), type=KeptTwin)
    assert kept.heard_at == 990.0
    again = make(kept, age=35.0, setpoint=-18)
    assert again.reported == {"temperature": 4.0, "door": "shut"}
    assert again.find_phase(0.0) == "Stale"
    assert plan_desired(again, lambda: "b") == []
    assert [one.command.id for one in plan_sendings(again.commands, 0.0, 0.0)[0]] == ["a"]


def test_only_a_change_beyond_the_deadband_moves_what_the_server_knows() -> None:
    twin = make()
    twin.take_values({"temperature": 4.0}, 1.0, 0)
    assert twin.differs()
    twin.echoed = dict(twin.reported)
    twin.take_values({"temperature": 4.4}, 2.0, 0)
    assert not twin.differs()
    twin.take_values({"temperature": 4.6}, 3.0, 0)
    assert twin.differs()


def test_values_that_a_new_model_does_not_allow_are_forgotten() -> None:
    twin = make()
    twin.take_values({"temperature": 4.0, "door": "shut"}, 1.0, 0)
    twin.take_model(Model({"temperature": Property(maximum=3)}))
    assert twin.reported == {}


def test_rules_read_values_measures_and_the_phase() -> None:
    twin = make()
    twin.take_values({"temperature": 4.0}, 1.0, 0)
    twin.take_values({"temperature": 6.0}, 12.0, 0)
    assert twin.read_values(12.0) == {"phase": "Online", "temperature": 6.0, "temperature.mean10": 4.0}


@given(
    st.sampled_from(["number", "integer", "boolean", "string"]),
    st.none() | st.floats(-10, 10),
    st.none() | st.floats(-10, 10),
    st.sampled_from([(), (1, 2.5, "a")]),
    st.floats() | st.integers() | st.booleans() | st.text(max_size=3) | st.sampled_from([10**400, 1, 2.5, "a"]),
)
def test_what_is_taken_quickly_is_what_the_check_allows(
    of: str, minimum: float | None, maximum: float | None, enum: tuple[Value, ...], value: Value
) -> None:
    known = Property(of, minimum=minimum, maximum=maximum, enum=enum)
    twin = Twin(Device("u1", "default", "cold-1", "cold"), Model({"p": known}), 1000.0, 0.0)
    twin.take_values({"p": value}, 1.0, 0)
    reason = check_value(known, value)
    assert twin.refused == ({reason: 1} if reason else {})
    assert ("p" in twin.reported) is not bool(reason)


def test_what_was_refused_is_said_until_a_message_comes_with_which_all_is_well() -> None:
    twin = make()
    twin.take_values({"temperature": 4.0}, 1.0, 0)
    for say, words in (
        (lambda: refuse_member(twin, "door", "type"), "door: its value is refused: type"),
        (lambda: refuse_member(twin, "update", "type"), "'update' is not a property of its model"),
        (lambda: twin.refuse("payload", "a message is refused: payload"), "a message is refused: payload"),
        (lambda: twin.take_values({"temperature": 400.0}, 2.0, 0), "temperature: '400.0' is refused: range"),
    ):
        twin.is_echo_due = False
        say()
        assert twin.problem == words and twin.is_echo_due
        twin.obstacle = "it has no credentials"
        assert twin.problem == f"it has no credentials; {words}"
        twin.obstacle, twin.is_echo_due = "", False
        twin.take_values({"temperature": 4.0}, 3.0, 0)
        assert twin.problem == "" and twin.is_echo_due
    assert twin.refused == {"type": 1, "unknown": 1, "payload": 1, "range": 1}


def test_a_device_that_knows_none_of_its_values_is_heard() -> None:
    twin = make()
    twin.take_values({"temperature": 4.0}, 1.0, 0)
    twin.take_values({}, 30.0, 0)  # each of its members was null
    assert twin.find_phase(59.0) == "Online" and twin.reported == {"temperature": 4.0} and twin.problem == ""


@pytest.mark.parametrize(
    ("href", "wanted", "reported"),
    [
        ("holding/50?type=float32", 21.7, 21.7),
        ("holding/50?type=int16&scale=0.1", -1.74, -1.7),
        ("holding/50?scale=0.5", 21.7, 21.5),
        ("holding/50", 21.7, 22),
        ("", 21.7, 21.700000762939453),  # of a device with floats of 32 bits
    ],
)
def test_a_command_is_confirmed_by_what_the_device_can_hold_of_it(href: str, wanted: float, reported: float) -> None:
    model = Model({"setf": Property("number", href=href)}, 30.0, 100.0)
    twin = Twin(Device("u1", "default", "cold-1", "cold", desired={"setf": wanted}), model, 1000.0, 0.0)
    twin.begin(Command("c", "setf", wanted))
    assert twin.find_drift() == ["setf"] and twin.is_becoming("setf", wanted)
    twin.take_values({"setf": reported + 1}, 1.0, 0)
    assert twin.find_drift() == ["setf"] and twin.commands["setf"].is_open
    twin.take_values({"setf": reported}, 2.0, 0)
    assert twin.find_drift() == [] and twin.commands["setf"].outcome == "Confirmed"
    assert twin.is_becoming("setf", wanted) and not twin.is_becoming("setf", reported + 1)


def test_a_value_of_which_the_device_would_hold_one_that_is_not_allowed_is_refused_with_that() -> None:
    model = Model({"setf": Property("number", maximum=21.8, href="holding/50")}, 30.0, 100.0)
    twin = Twin(Device("u1", "default", "cold-1", "cold"), model, 1000.0, 0.0)
    twin.begin(Command("c", "setf", 21.7))
    assert twin.commands["setf"].problem == "the device would hold 22, which is refused: range"
    twin.begin(Command("d", "setf", 21.4))
    assert twin.commands["setf"].is_open


def test_a_small_change_of_a_large_number_is_told() -> None:
    model = Model({"energy": Property("number")}, 30.0, 100.0)
    twin = Twin(Device("u1", "default", "cold-1", "cold"), model, 1000.0, 0.0)
    twin.take_values({"energy": 123456789.12}, 1.0, 0)
    twin.echoed = dict(twin.reported)
    twin.take_values({"energy": 123456790.12}, 2.0, 0)
    assert twin.differs()

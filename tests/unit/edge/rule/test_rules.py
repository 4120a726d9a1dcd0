"""Conditions over devices' values, and when rules fire."""

from __future__ import annotations

import pytest

from weft.edge.rule.engine import LEAST_PAUSE_SECONDS, Effect, Rule, RuleEngine
from weft.edge.rule.expression import compile_condition
from weft.objects.errors import InvalidInput

VALUES = {"temperature": 8.5, "temperature.mean60": 7.0, "door": "open", "fan": True, "count": 3}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("temperature > 8", True),
        ("temperature > 8 and door == open", True),
        ("temperature > 9 or door = open", True),
        ("temperature.mean60 > 7", False),
        ("temperature.mean60 >= 7", True),
        ("not door = shut", True),
        ("door != shut", True),
        ("fan = true", True),
        ("fan = 1", False),
        ("count = 3.0", True),
        ("count in (1, 2)", False),
        ("door in (open, ajar)", True),
        ("humidity > 5", False),
        ("humidity != 5", True),
        ("exists(humidity)", False),
        ("not exists(humidity), count < 4", True),
        ("door > 5", False),
        ("fan > 0", False),
    ],
)
def test_a_condition_over_a_devices_values(text: str, holds: bool) -> None:
    assert compile_condition(text)[0](VALUES) is holds


def test_a_number_of_32_bits_is_the_one_that_people_wrote() -> None:
    for text, holds in (
        ("volts = 229.01", True),
        ("volts != 229.01", False),
        ("volts in (1, 229.01)", True),
        ("volts = 229.02", False),
    ):
        assert compile_condition(text)[0]({"volts": 229.00999450683594}) is holds


@pytest.mark.parametrize(
    ("text", "word"), [("temperature >", "missing"), ("@gold", "can't name"), ("a = 1 )", "spec.when")]
)
def test_a_condition_that_cannot_be_is_refused_with_its_field(text: str, word: str) -> None:
    with pytest.raises(InvalidInput) as problem:
        compile_condition(text)
    assert word in problem.value.message or problem.value.field == word
    assert problem.value.field == "spec.when"


def make(**given: float) -> RuleEngine:
    engine = RuleEngine()
    engine.put(Rule("r", "default", "warm", "t > 8", then=(Effect(event="warm"),), **given), ["d"])
    return engine


def run(engine: RuleEngine, *steps: tuple[float, float | None]) -> list[float]:
    """Steps are (at, value of t or None for a tick)."""
    fired = []
    for at, value in steps:
        fired += engine.tick(at) if value is None else engine.note("d", {"t": value}, at)
    return [one.at for one in fired]


def test_a_rule_fires_once_for_each_time_that_its_condition_begins_to_hold() -> None:
    assert run(make(), (0, 9), (1, 10), (2, 11), (3, 7), (4, 9)) == [0, 4]


def test_a_rule_waits_until_its_condition_has_held_for_so_long() -> None:
    assert run(make(for_seconds=10), (0, 9), (5, 7), (6, 9), (15.9, None), (16, None), (30, None)) == [16]
    assert run(make(for_seconds=10), (0, 9), (12, 10)) == [12]


def test_a_rule_rests_and_fires_after_its_rest_if_it_holds_then() -> None:
    assert run(make(cooldown_seconds=60), (0, 9), (1, 7), (2, 9), (59, None), (60, None), (200, None)) == [0, 60]
    assert run(make(cooldown_seconds=60), (0, 9), (1, 7), (2, 9), (3, 7), (60, None)) == [0]


def test_a_circle_of_rules_is_slow() -> None:
    fired = run(make(), *((tick / 1000, 9 if tick % 2 else 7) for tick in range(1000)))
    assert len(fired) <= 1 / LEAST_PAUSE_SECONDS + 1


def test_a_silent_device_holds_no_condition_but_that_of_its_phase() -> None:
    engine = make(for_seconds=10)
    engine.put(Rule("p", "default", "lost", "phase = Offline"), ["d"])
    engine.note("d", {"t": 9.0, "phase": "Online"}, 0.0)
    fired = engine.note("d", {"t": 9.0, "phase": "Offline"}, 5.0, is_silent=True)
    assert [one.rule.name for one in fired] == ["lost"]
    assert engine.tick(20.0) == []


def test_a_rule_that_is_removed_or_changed_does_not_fire_for_what_it_waited_for() -> None:
    engine = make(for_seconds=10)
    engine.note("d", {"t": 9}, 0.0)
    engine.put(Rule("r", "default", "warm", "t > 8", for_seconds=20), ["d"])
    assert engine.tick(11.0) == []
    engine.remove("r")
    assert engine.note("d", {"t": 9}, 30.0) == []
    assert not engine.watches("d")


def test_the_same_rule_again_keeps_what_it_waits_for() -> None:
    engine = make(for_seconds=10)
    engine.note("d", {"t": 9}, 0.0)
    engine.put(Rule("r", "default", "warm", "t > 8", for_seconds=10, then=(Effect(event="warm"),)), ["d", "e"])
    assert [one.device for one in engine.tick(10.0)] == ["d"]
    assert engine.watches("e")


@pytest.mark.parametrize("given", [{"cooldown_seconds": 86400.0}, {"for_seconds": 3600.0}, {"for_seconds": 0.4}])
def test_a_value_that_flaps_leaves_one_entry_for_each_rule_and_device(given: dict[str, float]) -> None:
    engine = make(**given)
    engine.put(Rule("s", "default", "hot", "t > 8", **given), ["d", "e"])
    for second in range(1, 2001):
        for device in ("d", "e"):
            engine.note(device, {"t": 9 if second % 2 else 7}, float(second))
            engine.note(device, {"t": 7}, second + 0.1)
            engine.note(device, {"t": 9}, second + 0.2)
        engine.tick(second + 0.3)
        assert len(engine._due) <= 3


def test_a_value_that_flaps_delays_a_rule_no_longer_than_its_time() -> None:
    assert run(make(for_seconds=10), (0, 9), (5, 7), (6, 9), (7, 7), (8, 9), (10, None), (17.9, None), (18, None)) == [
        18
    ]
    steps = [(float(at), 9 if at % 2 else 7) for at in range(1, 60)]
    assert run(make(cooldown_seconds=60), *steps, (60.9, None), (61, None), (122, 7)) == [1, 61]


def test_nothing_stays_of_rules_that_are_replaced_and_of_devices_that_go() -> None:
    engine = make(for_seconds=3600)
    for number in range(100):
        engine.note("d", {"t": 9}, float(number))
        engine.put(Rule("r", "default", "warm", f"t > {number / 100}", for_seconds=3600), ["d", f"d{number}"])
        engine.note(f"d{number}", {"t": 9}, float(number))
        engine.note("d", {"t": 9}, float(number))
        assert len(engine._due) <= 2
    engine.put(Rule("r", "default", "warm", "t > 0.99", for_seconds=3600), ["d"])
    assert [device for _, device, _ in engine._due] == ["d"]
    engine.remove("r")
    assert engine._due == []

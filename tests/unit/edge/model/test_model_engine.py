"""Who decides, and when: the model, or its fallback after the deadline. In virtual time; answers are the test's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest

from weft.contracts.device import Value
from weft.contracts.edge.model_runner import ModelFile
from weft.edge.model.engine import (
    MOST_FRESH,
    MOST_OPEN,
    MOST_OVERDUE,
    PROBLEM_SECONDS,
    Decision,
    DecisionModel,
    DecisionOutcome,
    Fallback,
    ModelEngine,
)

FILE = ModelFile("a" * 64, 2)
WARM = Fallback(when="t > 8")


def make_model(file: ModelFile = FILE, fallback: Fallback = WARM, **result: object) -> DecisionModel:
    outcome = DecisionOutcome(**{"set": "defrost", "threshold": 0.5, **result})  # type: ignore[arg-type]
    return DecisionModel("m", "default", "frost", file, ("t", "h"), outcome, fallback)


class World:
    """An engine with devices, whose process the test is."""

    def __init__(self, model: DecisionModel | None = None, devices: int = 1) -> None:
        self.values: dict[str, dict[str, Value] | None] = {f"d{n}": {"t": 9.0, "h": 0.5} for n in range(devices)}
        self.at = 100.0
        self.engine = ModelEngine(self._read)
        self.model = model or make_model()
        self.engine.put({"m": (self.model, list(self.values))}, self.at)

    def _read(self, device: str) -> Mapping[str, Value] | None:
        return self.values.get(device)

    def run(self, file: ModelFile = FILE) -> None:
        self.engine.note_running({"m": file.version}, self.at)

    def say(self, device: str = "d0", **values: Value) -> None:
        found = self.values[device]
        assert found is not None
        found.update(values)
        self.engine.note(device, self.at)

    def wait(self, ms: float) -> None:
        self.at += ms / 1000
        self.engine.tick(self.at)

    def answer(self, value: float | None, problem: str = "") -> None:
        """To the oldest question that was handed over."""
        self.engine.answer(self.engine.asks.pop(0).number, value, problem, self.at)

    def take(self) -> list[tuple[Value | None, str]]:
        taken: list[Decision] = self.engine.decisions
        self.engine.decisions = []
        return [(one.value, one.by) for one in taken]

    def count(self) -> tuple[int, int, int, int]:
        ran = self.engine.ran["m"]
        return ran.runs, ran.late, ran.nan, ran.dead


def test_the_model_decides_when_it_answers_in_time() -> None:
    world = World()
    world.run()
    assert world.engine.asks[0].inputs == (9.0, 0.5)
    world.wait(7.9)
    world.answer(0.4)
    assert (world.take(), world.count()) == ([(False, "model")], (1, 0, 0, 0))
    assert world.engine.find_p99_ms("m") == pytest.approx(7.9)
    world.wait(100)
    assert world.take() == []


def test_after_the_deadline_the_fallback_decides_and_a_late_answer_is_dropped_and_counted() -> None:
    world = World()
    world.run()
    world.wait(7.99)
    assert world.take() == []
    assert world.engine.find_next() == pytest.approx(world.at + 0.00001)
    world.wait(0.02)
    assert (world.take(), world.count()) == ([(True, "late")], (1, 1, 0, 0))
    world.answer(0.1)
    assert (world.take(), world.engine.dropped) == ([], 1)
    assert "8 ms" in world.engine.find_problem("m", world.at)
    assert world.engine.find_problem("m", world.at + PROBLEM_SECONDS + 1) == ""


def test_an_answer_that_comes_after_the_deadline_but_before_the_alarm_is_late_all_the_same() -> None:
    world = World()
    world.run()
    world.at += 0.009  # the loop was busy
    world.answer(0.1)
    assert world.take() == [(True, "late")]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_no_number_is_a_miss(value: float | None) -> None:
    world = World()
    world.run()
    world.answer(value)
    assert (world.take(), world.count()) == ([(True, "nan")], (1, 0, 1, 0))


def test_a_process_that_ends_leaves_its_questions_to_the_fallback_and_so_are_all_until_another_runs() -> None:
    world = World()
    world.run()
    world.engine.note_running({}, world.at)
    assert world.take() == [(True, "dead")]
    world.say(t=3.0)
    assert (world.take(), world.count()) == ([(False, "dead")], (2, 0, 0, 2))
    world.engine.asks.clear()
    world.run()
    world.answer(0.9)
    assert world.take() == [(True, "model")]


def test_a_question_that_nobody_takes_is_decided_at_once() -> None:
    world = World()
    world.run()
    world.engine.refuse(world.engine.asks.pop(), world.at)
    assert (world.take(), world.count()) == ([(True, "dead")], (1, 0, 0, 1))


def test_values_that_come_while_it_thinks_are_asked_about_next_and_their_deadline_counts_from_when_they_came() -> None:
    world = World()
    world.run()
    world.wait(2)
    world.say(t=1.0)
    world.wait(1)
    world.say(t=2.0)
    assert len(world.engine.asks) == 1
    world.answer(0.9)
    assert world.take() == [(True, "model")]
    assert world.engine.asks[0].inputs == (2.0, 0.5)
    world.wait(6.9)
    assert world.take() == []
    world.wait(0.2)
    assert world.take() == [(False, "late")]


def test_while_it_hangs_each_new_value_is_decided_in_time() -> None:
    world = World()
    world.run()
    for t in (9, 3, 10):  # the first is what it was asked about already
        world.say(t=t)
        world.wait(8.1)
    assert world.take() == [(True, "late"), (False, "late"), (True, "late")]
    assert len(world.engine.asks) == 3


def test_a_model_is_asked_again_only_about_other_inputs() -> None:
    world = World()
    world.run()
    world.answer(0.9)
    world.say(t=9.0)
    assert world.engine.asks == []
    world.say(other=1)
    assert world.engine.asks == []
    world.say(h=0.6)
    assert len(world.engine.asks) == 1


def test_a_new_version_takes_over_when_it_runs_and_answers_are_of_the_version_that_was_asked() -> None:
    world = World()
    world.run()
    newer = make_model(ModelFile("b" * 64, 1), threshold=5.0)
    newer = DecisionModel("m", "default", "frost", newer.file, ("h",), newer.result, newer.fallback)
    world.engine.put({"m": (newer, ["d0"])}, world.at)
    world.answer(0.9)
    world.say(h=0.7)
    assert world.engine.asks[0].inputs == (9.0, 0.7)  # the one before decides until the new one runs
    world.run(newer.file)
    world.answer(0.9)
    assert world.take() == [(True, "model"), (True, "model")]  # by its own threshold
    assert world.engine.find_file("m") == "b" * 64


def test_devices_are_asked_about_again_when_another_version_runs_a_few_at_a_time() -> None:
    world = World(devices=100)
    world.run()
    asked = 0
    while world.engine.asks:
        assert len(world.engine.asks) <= MOST_FRESH
        world.answer(0.9)
        asked += 1
    assert asked == 100
    assert world.count() == (100, 0, 0, 0)


def test_too_many_questions_at_once_are_decided_by_the_fallback() -> None:
    world = World(devices=MOST_OPEN + 50)
    world.run()
    for device in world.values:
        world.say(device, h=0.7)
    assert len(world.engine.asks) == MOST_OPEN
    assert world.count() == (MOST_OPEN + 50, 50, 0, 0)


def test_a_missing_or_wrong_input_asks_nothing_and_says_which() -> None:
    world = World()
    world.values["d0"] = {"t": 9.0}
    world.run()
    assert (world.engine.asks, world.take()) == ([], [])
    assert "hasn't reported h" in world.engine.find_problem("m", world.at)
    world.values["d0"] = {"t": 9.0, "h": "wet"}
    world.engine.note("d0", world.at)
    assert "a text as h" in world.engine.find_problem("m", world.at)
    world.values["d0"] = None  # it is silent
    world.engine.note("d0", world.at)
    world.values["d0"] = {"t": True, "h": 10**400}  # numbers all the same
    world.engine.note("d0", world.at)
    assert world.engine.asks[0].inputs == (1.0, sys.float_info.max)


def test_without_a_fallback_nothing_is_decided_and_a_fixed_value_is_what_it_is() -> None:
    world = World(make_model(fallback=Fallback()))
    world.run()
    world.wait(9)
    assert world.take() == [(None, "late")]
    world = World(make_model(fallback=Fallback(value=4.5), threshold=None, scale=2.0, offset=1.0))
    world.run()
    world.wait(9)
    world.say(h=0.7)
    world.engine.asks.pop(0)
    world.answer(3.0)
    assert world.take() == [(4.5, "late"), (7.0, "model")]


def test_a_model_that_people_take_away_decides_no_more_and_what_it_was_asked_harms_nobody() -> None:
    world = World()
    world.run()
    world.engine.put({}, world.at)
    world.answer(0.9)
    world.wait(9)
    assert (world.take(), world.engine.ran) == ([], {})


def test_a_fallback_that_this_version_cannot_read_is_named() -> None:
    world = World()
    refused = world.engine.put({"m": (make_model(fallback=Fallback(when="t ??")), ["d0"])}, world.at)
    assert "can't be read" in refused["m"]


def test_questions_that_a_replaced_process_never_answered_go_to_the_fallback_and_block_no_other() -> None:
    world = World(devices=MOST_FRESH + 5)
    world.run()
    numbers = [one.number for one in world.engine.asks]
    world.wait(9)
    world.engine.asks.clear()
    world.engine.lose([*numbers, 10**9], world.at)
    assert len(world.engine.asks) == 5, "the devices that weren't asked about yet"
    assert world.count() == (MOST_FRESH + 5, MOST_FRESH, 0, 0)
    world.engine.lose([one.number for one in world.engine.asks], world.at)
    assert world.count() == (MOST_FRESH + 5, MOST_FRESH, 0, 5)


def test_a_device_that_went_while_its_question_was_open_is_asked_about_when_it_is_back() -> None:
    world = World()
    world.run()
    world.engine.put({"m": (world.model, [])}, world.at)
    world.wait(9)
    assert world.take() == []
    world.engine.asks.clear()
    world.engine.put({"m": (world.model, ["d0"])}, world.at)
    assert len(world.engine.asks) == 1


def test_a_slow_model_takes_no_more_than_its_share_and_leaves_the_others_their_turn() -> None:
    world = World(devices=MOST_OPEN)
    other = DecisionModel("n", "default", "other", FILE, ("t",), world.model.result, WARM)
    world.engine.put({"m": (world.model, list(world.values)), "n": (other, list(world.values))}, world.at)
    world.engine.note_running({"m": FILE.version, "n": FILE.version}, world.at)
    asked = [one.uid for one in world.engine.asks]
    assert (asked.count("m"), asked.count("n")) == (MOST_FRESH // 2, MOST_FRESH // 2)
    for device in world.values:
        world.say(device, h=0.7)
    asked = [one.uid for one in world.engine.asks]
    assert (asked.count("m"), asked.count("n")) == (MOST_OPEN // 2, MOST_OPEN // 2)


def test_a_model_whose_answers_are_overdue_is_not_asked_more_until_it_answers() -> None:
    world = World(devices=1)
    world.run()
    for t in range(MOST_OVERDUE + 3):
        world.wait(8.1)
        world.say(t=t)
    assert len(world.engine.asks) == MOST_OVERDUE
    assert "overdue" in world.engine.find_problem("m", world.at)
    assert world.count()[1] == MOST_OVERDUE + 4
    world.answer(0.1)
    world.say(t=20)
    assert len(world.engine.asks) == MOST_OVERDUE


def test_fallbacks_that_nothing_uses_any_more_are_forgotten() -> None:
    world = World()
    world.run()
    for t in range(100):
        world.engine.put({"m": (make_model(fallback=Fallback(when=f"t > {t}")), ["d0"])}, world.at)
    assert len(world.engine._entries["m"].condition) <= 3
    world.wait(8.1)
    assert world.take() == [(True, "late")], "by the condition of when it was asked"


def test_a_device_that_is_taken_away_and_comes_back_is_asked_about_again() -> None:
    world = World()
    world.run()
    world.answer(0.9)
    world.take()
    for devices in ([], ["d0"]):
        world.engine.put({"m": (world.model, devices)}, world.at)
    assert [one.inputs for one in world.engine.asks] == [(9.0, 0.5)]

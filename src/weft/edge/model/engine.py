"""When models are asked, and who decides: the model if it answers in time with a number, else its fallback. Pure; times are
passed in.

A model is asked for each of its devices when one of its inputs changed. While it thinks, newer values wait, and are asked about
next. ``deadline`` seconds after the values came the fallback decides by the values of then; what the model answers later is
dropped and counted. Questions have numbers, and each keeps the model as it was when it was asked: so an answer to one version is
never taken for another's. A new version takes over when it runs; until then the one before decides.

The caller hands over what gathers in ``asks``, and carries out ``decisions``.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

from weft.contracts.device import Value
from weft.contracts.edge.model_runner import ModelFile
from weft.edge.rule.expression import Condition, compile_condition

MOST_OPEN = 200  # questions that wait for an answer; more are decided by the fallback at once
LEAST_SHARE = 4  # of them that each model may have, however many models there are
MOST_OVERDUE = 4  # of a model that the fallback decided meanwhile: a slow model doesn't fill the process for the others
MOST_FRESH = 20  # about devices whose values didn't change
MOST_TIMES = 1000  # of a model, of which the p99 is
PROBLEM_SECONDS = 60.0  # that a miss is shown as a problem
NOT_RUNNING = "it isn't running"
By: TypeAlias = Literal["model", "late", "nan", "dead"]


class DecisionOutcome(msgspec.Struct, frozen=True):
    """The outcome of a decision: ``set`` a property of ``device`` ("": the one whose values were read), or an ``event``."""

    output: str = ""
    index: int = 0
    scale: float = 1.0
    offset: float = 0.0
    threshold: float | None = None
    set: str = ""
    device: str = ""
    expires_seconds: float | None = None
    event: str = ""


class Fallback(msgspec.Struct, frozen=True):
    when: str = ""
    value: Value | None = None


class DecisionModel(msgspec.Struct, frozen=True):
    uid: str
    project: str
    name: str
    file: ModelFile
    inputs: tuple[str, ...]
    result: DecisionOutcome
    fallback: Fallback = Fallback()
    deadline: float = 0.008  # seconds


class Ran(msgspec.Struct):
    """Counts that a gateway has of a model, ever."""

    runs: int = 0
    late: int = 0
    nan: int = 0
    dead: int = 0


class Ask(msgspec.Struct, frozen=True):
    number: int
    uid: str
    inputs: tuple[float, ...]


class Decision(msgspec.Struct, frozen=True):
    """``value`` None: nothing is done, as the fallback says nothing."""

    model: DecisionModel
    device: str  # uid
    value: Value | None
    by: By


class _Question:
    __slots__ = ("device", "entry", "inputs", "is_decided", "model", "noted_at", "number")

    def __init__(
        self,
        number: int,
        entry: _Entry,
        model: DecisionModel,
        device: str,
        inputs: tuple[float, ...],
        noted_at: float,
    ) -> None:
        self.entry = entry
        self.number, self.model, self.device, self.inputs, self.noted_at = number, model, device, inputs, noted_at
        self.is_decided = False


class _Entry:
    """A model: as people want it, as it runs, and what is known of it."""

    __slots__ = (
        "condition",
        "decided",
        "devices",
        "open",
        "overdue",
        "problem",
        "problem_at",
        "running",
        "times",
        "unanswered",
        "waiting",
        "wanted",
    )

    def __init__(self, wanted: DecisionModel) -> None:
        self.wanted = wanted
        self.running: DecisionModel | None = None
        self.devices: frozenset[str] = frozenset()
        self.condition: dict[str, Condition] = {}  # of fallbacks, by their text
        self.open: dict[str, int] = {}  # by device: the number of the question that isn't decided
        self.waiting: dict[str, float] = {}  # by device: since when newer values wait
        self.decided: dict[str, tuple[float, ...]] = {}  # by device: the inputs of the model's own last decision
        self.unanswered = self.overdue = 0  # questions; and those of them that the fallback decided meanwhile
        self.times: deque[float] = deque(maxlen=MOST_TIMES)
        self.problem, self.problem_at = "", -math.inf


class ModelEngine:
    """``read`` gives the values of a device (uid), as rules read them; None: it is silent or gone."""

    def __init__(self, read: Callable[[str], Mapping[str, Value] | None]) -> None:
        self._read = read
        self._entries: dict[str, _Entry] = {}
        self._by_device: dict[str, set[str]] = {}
        self._questions: dict[int, _Question] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._fresh: dict[str, deque[str]] = {}  # by model: devices of which nothing changed but the model
        self._number = 0
        self._versions: Mapping[str, str] = {}
        self.ran: dict[str, Ran] = {}
        self.is_dirty = False
        self.dropped = 0  # answers that came too late
        self.problems: Mapping[str, str] = {}  # why models aren't running
        self.asks: list[Ask] = []
        self.decisions: list[Decision] = []

    # --- what people want --------------------------------------------------------------------------------------------

    def put(self, models: Mapping[str, tuple[DecisionModel, Iterable[str]]], at: float) -> dict[str, str]:
        """These are all models now, by uid, each with the devices (uids) that it is for. Returns why some can't be, by uid."""
        refused = {}
        for uid in self._entries.keys() - models.keys():
            del self._entries[uid]
        for uid in self.ran.keys() - models.keys():
            del self.ran[uid]
            self.is_dirty = True
        for uid, (model, devices) in models.items():
            entry = self._entries.get(uid)
            if entry is None:
                entry = self._entries[uid] = _Entry(model)
                self.ran.setdefault(uid, Ran())
            entry.wanted, entry.devices = model, frozenset(devices)
            for gone in entry.decided.keys() - entry.devices:
                del entry.decided[gone]
            asked = {one.model.fallback.when for one in self._questions.values() if one.entry is entry}
            used = {model.fallback.when, entry.running.fallback.when if entry.running is not None else "", *asked}
            entry.condition = {when: one for when, one in entry.condition.items() if when in used}
            if (when := model.fallback.when) and when not in entry.condition:
                try:
                    entry.condition[when] = compile_condition(when, "spec.fallback.when")[0]
                except Exception as problem:  # of a newer server's grammar
                    refused[uid] = f"its fallback can't be read: {problem}"[:300]
        self._by_device = {}
        for uid, entry in self._entries.items():
            for device in entry.devices:
                self._by_device.setdefault(device, set()).add(uid)
        self._switch(at)
        return refused

    def note_running(self, versions: Mapping[str, str], at: float) -> None:
        """These versions run now. {}: none does, and what was asked stays without an answer."""
        self._versions = dict(versions)
        if not versions:
            self._lose(list(self._questions), at)
        self._switch(at)

    def lose(self, numbers: Iterable[int], at: float) -> None:
        """The process that was asked these questions has ended without an answer to them."""
        self._lose(numbers, at)
        self._ask_fresh(at)

    def _lose(self, numbers: Iterable[int], at: float) -> None:
        for number in numbers:
            question = self._close(number)
            if question is not None and not question.is_decided:
                self._miss(question, "dead", "its process ended", at)

    def watches(self, device: str) -> bool:
        return device in self._by_device

    # --- what happens ------------------------------------------------------------------------------------------------

    def note(self, device: str, at: float) -> None:
        """Values of a device changed."""
        for uid in self._by_device.get(device, ()):
            entry = self._entries[uid]
            question = self._questions.get(entry.open.get(device, 0))
            if question is None:
                self._ask(entry, device, at, at)
            elif self._read_inputs(question.model, device, at) == question.inputs:
                entry.waiting.pop(device, None)
            else:
                entry.waiting.setdefault(device, at)

    def answer(self, number: int, value: float | None, problem: str, at: float) -> None:
        """The answer to question ``number``; None: it is no number, for ``problem``."""
        self._take_answer(number, value, problem, at)
        self._ask_fresh(at)

    def _take_answer(self, number: int, value: float | None, problem: str, at: float) -> None:
        question = self._close(number)
        if question is None:
            return  # of a process that had ended
        entry = self._entries.get(question.model.uid)
        if entry is not None:
            entry.times.append(at - question.noted_at)
        if question.is_decided:
            self.dropped += 1
            return
        if value is not None:
            value = value * question.model.result.scale + question.model.result.offset
        if value is None or not math.isfinite(value):
            self._miss(question, "nan", problem or "it gave no number", at)
        elif at - question.noted_at > question.model.deadline:
            self._miss(question, "late", _describe_lateness(question, at), at)
        else:
            if entry is not None:
                entry.decided[question.device] = question.inputs
            threshold = question.model.result.threshold
            self._decide(question, value if threshold is None else value >= threshold, "model", at)

    def tick(self, at: float) -> None:
        """Fallbacks decide where time is up."""
        while self._deadlines and self._deadlines[0][0] <= at:
            _, number = heapq.heappop(self._deadlines)
            question = self._questions.get(number)
            if question is not None and not question.is_decided:
                question.entry.overdue += 1
                self._miss(question, "late", _describe_lateness(question, at), at)

    def find_next(self) -> float | None:
        """When ``tick`` is needed next (clock's elapsed seconds)."""
        while self._deadlines:
            question = self._questions.get(self._deadlines[0][1])
            if question is not None and not question.is_decided:
                return self._deadlines[0][0]
            heapq.heappop(self._deadlines)
        return None

    def refuse(self, ask: Ask, at: float) -> None:
        """The runner doesn't take the question."""
        question = self._close(ask.number)
        if question is not None:
            self._miss(question, "dead", "its process isn't there", at)

    def note_problem(self, uid: str, problem: str, at: float) -> None:
        """A decision can't be carried out."""
        if (entry := self._entries.get(uid)) is not None:
            entry.problem, entry.problem_at = problem, at

    # --- what is reported --------------------------------------------------------------------------------------------

    def find_problem(self, uid: str, at: float) -> str:
        """Why it isn't running; else what went wrong within the last minute."""
        entry = self._entries.get(uid)
        if entry is None:
            return ""
        if problem := self.problems.get(uid, ""):
            before = f"; {entry.running.file.sha256[:12]} goes on" if entry.running is not None else ""
            return problem + before
        return entry.problem if at - entry.problem_at <= PROBLEM_SECONDS else ""

    def find_p99_ms(self, uid: str) -> float | None:
        """Find the 99th percentile of the last answers' times, from the values to the answer."""
        times = sorted(self._entries[uid].times) if uid in self._entries else []
        return times[min(len(times) - 1, len(times) * 99 // 100)] * 1000 if times else None

    def find_file(self, uid: str) -> str:
        entry = self._entries.get(uid)
        return entry.running.file.sha256 if entry is not None and entry.running is not None else ""

    # --- within ------------------------------------------------------------------------------------------------------

    def _switch(self, at: float) -> None:
        """Models whose wanted version runs are as people want them, and are asked about all of their devices."""
        for uid, entry in self._entries.items():
            version, before = self._versions.get(uid), entry.running
            if version == entry.wanted.file.version:
                entry.running = entry.wanted
            elif before is not None and version != before.file.version:
                entry.running = None
            if entry.running is not None and entry.running != before:
                entry.decided.clear()
                if before is None and entry.problem.endswith(NOT_RUNNING):
                    entry.problem = ""
        self._fresh = {
            uid: deque(entry.devices - entry.open.keys() - entry.decided.keys())
            for uid, entry in self._entries.items()
            if entry.running is not None
        }
        self._ask_fresh(at)

    def _ask_fresh(self, at: float) -> None:
        """Ask about devices of which nothing changed but the model: a few at a time, since each is in no hurry."""
        share = self._find_share(MOST_FRESH, 1)
        for uid, devices in self._fresh.items():
            entry = self._entries[uid]
            while devices and entry.unanswered < share and entry.overdue < MOST_OVERDUE:
                if len(self._questions) >= MOST_OPEN // 2:
                    return
                device = devices.popleft()
                if device not in entry.open and device not in entry.decided:
                    self._ask(entry, device, at, at)

    def _find_share(self, of: int, least: int) -> int:
        return max(least, of // max(1, len(self._entries)))

    def _close(self, number: int) -> _Question | None:
        """The question isn't open any more. None: there is none of that number."""
        question = self._questions.pop(number, None)
        if question is not None:
            question.entry.unanswered -= 1
            question.entry.overdue -= question.is_decided
        return question

    def _ask(self, entry: _Entry, device: str, noted_at: float, at: float) -> None:
        model = entry.running or entry.wanted
        given = self._read_inputs(model, device, at)
        if given is None or (entry.running is not None and entry.decided.get(device) == given):
            return
        self._number += 1
        self.is_dirty = True
        self.ran[model.uid].runs += 1
        question = _Question(self._number, entry, model, device, given, noted_at)
        entry.open[device] = self._number
        if entry.running is None:
            self._miss(question, "dead", NOT_RUNNING, at)
        elif len(self._questions) >= MOST_OPEN or entry.unanswered >= self._find_share(MOST_OPEN, LEAST_SHARE):
            self._miss(question, "late", f"{entry.unanswered} questions to it wait already", at)
        elif entry.overdue >= MOST_OVERDUE:
            self._miss(question, "late", f"{entry.overdue} answers of it are overdue", at)
        elif at - noted_at >= model.deadline:
            self._miss(question, "late", _describe_lateness(question, at), at)
        else:
            self._questions[self._number] = question
            entry.unanswered += 1
            heapq.heappush(self._deadlines, (noted_at + model.deadline, self._number))
            self.asks.append(Ask(self._number, model.uid, given))

    def _read_inputs(self, model: DecisionModel, device: str, at: float) -> tuple[float, ...] | None:
        """None: the device is silent, or one of them is missing or no number, which is noted."""
        values = self._read(device)
        if values is None:
            return None
        inputs = []
        for name in model.inputs:
            value = values.get(name)
            if value is None or isinstance(value, str):
                why = "hasn't reported" if value is None else "reports a text as"
                self.note_problem(model.uid, f"a device {why} {name}, so the model isn't asked about it", at)
                return None
            inputs.append(_to_float(value))
        return tuple(inputs)

    def _miss(self, question: _Question, by: Literal["late", "nan", "dead"], problem: str, at: float) -> None:
        model = question.model
        if (ran := self.ran.get(model.uid)) is not None:
            setattr(ran, by, getattr(ran, by) + 1)
        entry = self._entries.get(model.uid)
        value = model.fallback.value
        if entry is not None:
            entry.decided.pop(question.device, None)
            if not self.problems.get(model.uid):
                entry.problem, entry.problem_at = f"its fallback decides: {problem}"[:300], at
            condition = entry.condition.get(model.fallback.when)
            values = self._read(question.device) if condition is not None else None
            if condition is not None and values is not None:
                value = condition(values)
        self._decide(question, value, by, at)

    def _decide(self, question: _Question, value: Value | None, by: By, at: float) -> None:
        question.is_decided = True
        entry = self._entries.get(question.model.uid)
        if entry is None:
            return  # people took it away meanwhile
        if entry.open.get(question.device) == question.number:
            del entry.open[question.device]
        if question.device not in entry.devices:
            entry.waiting.pop(question.device, None)
            return  # people took the device away; the same may come back
        self.decisions.append(Decision(question.model, question.device, value, by))
        since = entry.waiting.pop(question.device, None)
        if since is not None:
            self._ask(entry, question.device, since, at)


def _describe_lateness(question: _Question, at: float) -> str:
    return f"it took more than {question.model.deadline * 1000:g} ms"


def _to_float(value: bool | int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -sys.float_info.max

"""A device's twin: what it reported, what it should be, and when it last spoke. Pure; times are passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from weft.contracts.device import Value
from weft.edge.device.check import Allowance, check_value, is_held, is_same
from weft.edge.device.command import Command
from weft.edge.device.model import MOST_PROPERTIES, MOST_WINDOWS, Device, Model
from weft.edge.device.window import OpenWindow
from weft.kinds.fields.device.register import find_held

Phase = Literal["Online", "Stale", "Offline"]
ECHO_SECONDS = 10.0  # between two reports of a device's values
MOST_ENDED = 8  # commands that ended and are told, of one device


class KeptTwin(msgspec.Struct, omit_defaults=True):
    """The state that survives the process, as it is written. ``heard_at``: Unix seconds by this machine's clock, 0: never."""

    reported: dict[str, Value] = {}
    heard_at: float = 0.0
    commands: dict[str, Command] = {}
    seen: dict[str, tuple[Value, float | None]] = {}
    ended: list[Command] = []


class Twin:
    __slots__ = (
        "allowance",
        "commands",
        "device",
        "echoed",
        "echoed_at",
        "ended",
        "heard_at",
        "is_dirty",
        "is_echo_due",
        "model",
        "obstacle",
        "refusal",
        "refused",
        "reported",
        "seen",
        "told_phase",
        "unreached",
        "windows",
    )

    def __init__(
        self, device: Device, model: Model, rate: float, at: float, kept: KeptTwin | None = None, age: float = 0.0
    ) -> None:
        """``age``: seconds since it spoke last, where ``kept`` says that it did."""
        kept = kept or KeptTwin()
        self.device = device
        self.model = model
        self.reported: dict[str, Value] = dict(kept.reported)
        self.heard_at: float | None = at - age if kept.heard_at else None
        self.commands: dict[str, Command] = kept.commands
        self.seen = kept.seen  # what of the spec's desired has become commands
        self.ended: list[Command] = kept.ended
        self.refused: dict[str, int] = {}
        self.obstacle = ""  # why it can't be heard, or not be served
        self.refusal = ""  # what was wrong with its last message
        self.unreached = ""  # why its driver can't reach it
        self.echoed: dict[str, Value] = {}
        self.echoed_at: float | None = None
        self.told_phase = ""
        self.is_dirty = False
        self.is_echo_due = True
        self.allowance = Allowance(rate, at)
        self.windows: dict[str, list[OpenWindow]] = {}
        for command in self.commands.values():
            command.next_at = 0.0
        self.take_model(model)

    @property
    def problem(self) -> str:
        """The problem that people should know; "" when all is well."""
        return "; ".join(one for one in (self.obstacle, self.refusal) if one)

    def take_model(self, model: Model) -> None:
        """Take the model: from now on the device is of ``model``; values that it doesn't allow are forgotten."""
        if model is not self.model or not self.windows:
            self.windows = {
                name: [OpenWindow(window) for window in one.windows[:MOST_WINDOWS] if window.seconds > 0]
                for name, one in model.properties.items()
                if one.windows and one.type in ("number", "integer")
            }
        self.model = model
        for name in list(self.reported):
            known = model.properties.get(name)
            if known is None or check_value(known, self.reported[name]):
                del self.reported[name]
                self.is_echo_due = self.is_dirty = True

    def take_values(self, values: Mapping[str, Value], at: float, now: float) -> bool:
        """The device says ``values``. Returns whether anything changed that rules read. What can't be is counted by reason, and the
        rest is taken. ``at``: clock's elapsed seconds; ``now``: the server's Unix seconds."""
        if not self.allowance.takes(at):
            self.refuse("rate", "")
            return False
        if len(values) > MOST_PROPERTIES:
            self.refuse("size", f"a message with more than {MOST_PROPERTIES} properties")
            return False
        before_refusal, self.refusal = self.refusal, ""
        intakes, reported, commands = self.model.intakes, self.reported, self.commands
        changed, taken = False, not values
        for name, value in values.items():
            intake = intakes.get(name)
            if intake is None:
                self.refuse("unknown", f"{name[:40]!r} is not a property of its model")
                continue
            kind = type(value)
            is_plain = kind is intake.plain and (kind is bool or intake.least <= value <= intake.most)  # type: ignore[operator]
            if not is_plain and (reason := check_value(intake.known, value)):
                self.refuse(reason, f"{name}: {str(value)[:40]!r} is refused: {reason}")
                continue
            taken = True
            if name in self.windows:
                for window in self.windows[name]:
                    changed |= window.add(float(value), at)
            before = reported.get(name)
            if before is None or before != value or type(before) is not kind:
                reported[name] = value
                changed = True
                self.is_echo_due = True
            if commands:
                command = commands.get(name)
                if command is not None and command.is_open and is_held(intake.known, value, command.value):
                    self.end(command, "Confirmed", now)
        if taken:
            if self.heard_at is None:
                changed = True
            self.heard_at = at
            self.is_dirty = True
        self.is_echo_due |= self.refusal != before_refusal
        return changed

    def close_windows(self, at: float) -> bool:
        changed = False
        for windows in self.windows.values():
            for window in windows:
                changed |= window.close(at)
        return changed

    def refuse(self, reason: str, problem: str) -> None:
        """``problem``: what people should know of it, until a message comes with which all is well."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        if problem and problem != self.refusal:
            self.refusal = problem
            self.is_echo_due = True

    def note_reach(self, problem: str) -> None:
        """Its driver can't reach it, or can again ("")."""
        if problem == self.unreached:
            return
        if problem or self.obstacle == self.unreached:
            self.obstacle = problem
        self.unreached = problem
        self.is_echo_due = True

    def find_phase(self, at: float) -> Phase:
        if self.heard_at is None or at - self.heard_at >= self.model.offline_seconds:
            return "Offline"
        return "Stale" if at - self.heard_at >= self.model.stale_seconds else "Online"

    def read_values(self, at: float) -> dict[str, Value]:
        """Read the values for rules: values by property, measures as ``temperature.mean60``, the phase (unless a property has that
        name)."""
        values: dict[str, Value] = {"phase": self.find_phase(at), **self.reported}
        for name, windows in self.windows.items():
            for window in windows:
                for measure, value in window.closed.items():
                    values[f"{name}.{measure}{window.plan.seconds}"] = value
        return values

    def find_drift(self) -> list[str]:
        """The properties that aren't as the spec wants them, in order. What wasn't there in time is no drift any more."""
        drift = []
        for name, wanted in self.device.desired.items():
            command = self.commands.get(name)
            if command is not None and command.source == "spec" and command.outcome == "Expired":
                continue
            reported = self.reported.get(name)
            if reported is None or not is_held(self.model.properties.get(name), reported, wanted):
                drift.append(name)
        return sorted(drift)

    def is_becoming(self, name: str, value: Value) -> bool:
        """Whether the property has that value, or the newest command on its way gives it."""
        known, command = self.model.properties.get(name), self.commands.get(name)
        if command is not None and command.is_open:
            held = find_held(known.href, command.value) if known is not None else command.value
            return is_held(known, held, value)
        return name in self.reported and is_held(known, self.reported[name], value)

    def begin(self, command: Command) -> None:
        """A new command; it replaces the one before of its property."""
        known = self.model.properties.get(command.name)
        self.is_dirty = True
        problem = ""
        if known is None:
            problem = "it is not a property of the model"
        elif known.read_only:
            problem = "it is read-only"
        elif reason := check_value(known, command.value):
            problem = f"the value is refused: {reason}"
        elif reason := check_value(known, held := find_held(known.href, command.value)):
            problem = f"the device would hold {held}, which is refused: {reason}"
        self.commands[command.name] = command
        if problem:
            self.obstacle = f"{command.name}: {problem}"
            command.problem = problem
            self.end(command, "Refused", 0.0)

    def end(self, command: Command, outcome: Literal["Confirmed", "Expired", "Refused"], now: float) -> None:
        command.outcome, command.ended_at = outcome, now
        if outcome == "Confirmed":
            command.problem = ""  # of an earlier try
        self.note_end(command)

    def note_end(self, command: Command) -> None:
        self.ended = [*self.ended[-MOST_ENDED + 1 :], command]
        self.is_dirty = self.is_echo_due = True

    def differs(self) -> bool:
        """Whether a value differs from what the server was told by more than the deadband."""
        if self.reported.keys() != self.echoed.keys():
            return True
        return any(
            not is_same(self.model.properties.get(name), value, self.echoed[name])
            for name, value in self.reported.items()
        )

    def keep(self, at: float, now: float) -> KeptTwin:
        """Make what a save writes; ``now``: Unix seconds by this machine's clock."""
        heard = 0.0 if self.heard_at is None else max(1.0, now - (at - self.heard_at))
        return KeptTwin(self.reported, heard, self.commands, self.seen, self.ended)


def plan_desired(twin: Twin, make_id: Callable[[], str]) -> list[Command]:
    """One command for each desired value of the device's spec that is new, or has another time by which it must be there. Notes
    them as seen, so each makes one command, also across restarts."""
    desired = {name: (value, twin.device.desired_until.get(name)) for name, value in twin.device.desired.items()}
    made = [
        Command(make_id(), name, value, until)
        for name, (value, until) in desired.items()
        if twin.seen.get(name) != (value, until)
    ]
    if desired != twin.seen:
        for gone in twin.seen.keys() - desired.keys():
            command = twin.commands.get(gone)
            if command is not None and command.source == "spec":
                del twin.commands[gone]  # people took it back
        twin.seen, twin.is_dirty = desired, True
    return made


def refuse_member(twin: Twin, name: str, reason: str) -> None:
    """A member of the device's message, the rest of which was taken, is not a value."""
    if name in twin.model.intakes:
        twin.refuse(reason, f"{name}: its value is refused: {reason}")
    else:
        twin.refuse("unknown", f"{name[:40]!r} is not a property of its model")

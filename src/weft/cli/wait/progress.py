"""Work in progress, on standard error: on a terminal a live line for each object, off it a plain line for each step."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from weft.cli.command.target import Target
from weft.cli.output.local_time import localize
from weft.cli.output.terminal import Paint, clean, find_width, is_terminal, plan_paint
from weft.cli.placement.decision import describe_choice, read_notes
from weft.kinds.fields.cells import dig
from weft.kinds.parts.workload import OUT_OF_REACH
from weft.kinds.record import Object
from weft.kinds.registry import BY_NAME

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_COUNTED = re.compile(r": [\d.]+ \w+ of ([\d.]+ \w+)$")  # off a terminal only what it is all in all
_TURNS = "\0"  # where the wheel is drawn
# A step that goes on and says in words what it does. One that says how far it is would be printed without end.
_SAYS_WHAT = re.compile(r"\S+ [^\d\0]+ \0")
_UNDER_WAY = ("Prolog", "Boot")  # in other phases the steps are those of last time
_DOING = (
    "starting",
    "stopping",
    "suspending",
    "restarting",
)  # a workload's reasons while a change is carried out
_ENDS = ("stopping", "restarting", "Shutdown")
_ENDING = "ending"
_BEGINS = "Updating"  # nobody has done anything yet about the newest change
_STEPWISE = (_BEGINS, "Pending", *_UNDER_WAY, "Running", "Stopped")  # off a terminal, what follows is printed instead
_PATIENT_SECONDS = 1.0  # an end that is over sooner isn't worth a word
_SIGNS = {"done": "✓", "failed": "✗"}


class Progress:
    """Shows the progress of objects. Once a VM has a node, ``find_decision(target, project)`` tells why it is there."""

    def __init__(
        self,
        elapsed: Callable[[], float],
        find_decision: Callable[[Target, str | None], Object | None] | None = None,
        stream: TextIO | None = None,
        color: bool = True,
        only_live: bool = False,
    ) -> None:
        self._elapsed = elapsed
        self._find_decision = find_decision
        self._stream = stream or sys.stderr
        self._live = is_terminal(self._stream)
        self._silent = only_live and not self._live
        self._paint: Paint = plan_paint(self._stream, color)
        self._began = elapsed()
        self._lines: dict[str, str] = {}  # what each object's live line says
        self._placed: dict[str, str] = {}  # the node that was last printed for each object
        self._printed: set[tuple[str, str]] = set()
        self._ending: dict[str, tuple[float, float]] = {}  # when its end began, and how many seconds it has
        self._drawn = 0
        self._frame = 0

    @property
    def animated(self) -> bool:
        """Something on the screen turns, so ``tick`` should be called ten times a second."""
        return self._live

    @property
    def seconds(self) -> float:
        return self._elapsed() - self._began

    def show(self, target: Target, obj: Object | None, over: bool = False) -> None:
        """``obj`` is the object as it is now; None: it doesn't exist. ``over``: its result is printed elsewhere."""
        if obj is not None:
            self._show_place(target, obj)
        if obj is None or over:
            self._lines.pop(target.what, None)
            self._ending.pop(target.what, None)
            self._draw()
            return
        word, note = describe_standing(obj)
        steps = [_step(step) for step in dig(obj, "status.steps", [])] if word in _UNDER_WAY else []
        self._note_ending(target, obj, word)
        if self._live:
            self._lines[target.what] = "   ".join([f"{target.what}  {word}", *steps, *([note] if note else [])])
            self._draw()
            return
        standing = _COUNTED.sub(r": \1", f"{word}: {note}" if note else "" if word in _STEPWISE else word)
        for line in ([standing] if standing else []) + steps:
            if not line.endswith(_TURNS):
                self._print_once(target, line)
            elif _SAYS_WHAT.fullmatch(line):
                self._print_once(target, line.removesuffix(f" {_TURNS}"))

    @property
    def due_seconds(self) -> float | None:
        """The number of seconds until a line is due although nothing changes; None: never."""
        unsaid = [began for what, (began, _) in self._ending.items() if (what, _ENDING) not in self._printed]
        return max(0.0, min(unsaid) + _PATIENT_SECONDS - self._elapsed()) if unsaid and not self._live else None

    def _note_ending(self, target: Target, obj: Object, word: str) -> None:
        grace = dig(obj, "spec.grace")
        reached = dig(obj, "status.reason") not in OUT_OF_REACH
        if grace and reached and (word in _ENDS or (word == "Deleting" and dig(obj, "status.phase") == "Shutdown")):
            self._ending.setdefault(target.what, (self._elapsed(), float(grace)))
        else:
            self._ending.pop(target.what, None)

    def _describe_ending(self, what: str) -> str:
        """``will be killed in 18 s unless it stops first``; empty as long as that isn't worth a word."""
        began, grace = self._ending.get(what, (self._elapsed(), 0.0))
        waited = self._elapsed() - began
        left = max(0.0, grace - waited)
        return f"will be killed in {left:.0f} s unless it stops first" if waited >= _PATIENT_SECONDS else ""

    def _print_once(self, target: Target, line: str) -> None:
        if (target.what, line) not in self._printed:
            self._printed.add((target.what, line))
            self._print(f"{target.what}  {line}")

    def draw(self, target: Target, live: str, key: str) -> None:
        """The state of ``target`` in a line of its own: on a terminal ``live``, off it the same once for each ``key``."""
        if self._live:
            self._lines[target.what] = live
            self._draw()
        elif (target.what, key) not in self._printed:
            self._printed.add((target.what, key))
            self._print(live)

    def notify(self, line: str) -> None:
        """A line that stays, above the live one."""
        self._print(line)

    def tick(self) -> None:
        """Turn the wheel, and print what takes long."""
        self._frame += 1
        for what in self._ending if not self._live else ():
            if (what, _ENDING) not in self._printed and (line := self._describe_ending(what)):
                self._printed.add((what, _ENDING))
                self._print(f"{what}  {line}")
        self._draw()

    def end(self) -> None:
        """Take the live lines away; what follows is printed in their place."""
        self._lines.clear()
        self._draw()

    def _show_place(self, target: Target, obj: Object) -> None:
        node = dig(obj, "status.node")
        if node and self._placed.get(target.what) != node and self._find_decision is not None:
            self._placed[target.what] = node
            decision = self._find_decision(target, obj.get("project"))
            self._print(f"{target.what}  {describe_choice(decision, node)}")
            for note in read_notes(decision):
                self._print(f"{target.what}  note: {note}")

    def _print(self, line: str) -> None:
        if self._silent:
            return
        self._erase()
        self._stream.write(localize(clean(line)) + "\n")
        self._draw()
        self._stream.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f"\r\x1b[{self._drawn - 1}A\x1b[J" if self._drawn > 1 else "\r\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._live:
            return
        self._erase()
        width = find_width(self._stream) or 80
        wheel = _SPINNER[self._frame % len(_SPINNER)]
        texts = ["   ".join(filter(None, (text, self._describe_ending(what)))) for what, text in self._lines.items()]
        lines = [_fit(clean(text.replace(_TURNS, wheel)), f"  {self.seconds:.1f} s", width - 1) for text in texts[:10]]
        lines = [self._paint.color(line, "dim") for line in lines]
        self._stream.write("\n".join(lines))
        self._drawn = len(lines)
        self._stream.flush()


def _fit(text: str, end: str, width: int) -> str:
    """``text`` and its ``end`` in ``width`` columns: what was done first is left out first, and the end stays."""
    first, *rest = text.split("   ")
    while len(rest) > 1 and len("   ".join([first, *rest])) + len(end) > width:
        del rest[0]
    return "   ".join([first, *rest])[: max(0, width - len(end))] + end


def describe_standing(obj: Object) -> tuple[str, str]:
    """Its phase, or the change in progress, and its status's message. Pure."""
    status = obj.get("status") or {}
    reason, message = str(status.get("reason") or ""), clean(str(status.get("message") or ""))
    if obj.get("deleting_since"):
        return "Deleting", message if reason in OUT_OF_REACH else ""
    phase = str(status.get("phase") or "Pending")
    if status.get("observed_generation", obj.get("generation", 0)) < obj.get("generation", 0):
        return _BEGINS, ""  # its phase is that of the generation before, which may have ended in any way
    if reason in _DOING:
        return reason, message
    progress = BY_NAME[obj["kind"]].display.progress
    if progress is not None:
        return phase, clean(progress(obj))
    return phase, f"{reason}: {message}" if message and reason not in message else message


def _step(step: Mapping[str, Any]) -> str:
    """``disk ✓ 8 ms``; what is still being done ends with the sign that turns."""
    name, detail = clean(step.get("name", "")), clean(str(step.get("detail") or ""))
    sign = _SIGNS.get(str(step.get("state")))
    return " ".join(part for part in ((name, sign, detail) if sign else (name, detail, _TURNS)) if part)

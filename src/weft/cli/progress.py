"""Work in progress, on standard error: on a terminal a live line for each object, off it a plain line for each step."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from weft.cli.placement import describe_choice, read_notes
from weft.cli.terminal import Paint, clean, find_width, is_terminal, plan_paint
from weft.cli.words import Target
from weft.kinds.cells import dig

Object = Mapping[str, Any]
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_COUNTED = re.compile(r": [\d.]+ \w+ of ([\d.]+ \w+)$")  # off a terminal only what it is all in all
_UNDER_WAY = ("Prolog", "Boot")  # in other phases the steps are those of last time
_SIGNS = {"done": "✓", "failed": "✗"}


class Progress:
    """Shows how objects get on. ``find_decision(target)`` is asked once a VM has a node, to say why it is there."""

    def __init__(
        self,
        elapsed: Callable[[], float],
        find_decision: Callable[[Target], Object | None] | None = None,
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
        self._placed: dict[str, str] = {}  # the node each object was last said to be on
        self._told: set[tuple[str, str]] = set()
        self._drawn = 0
        self._frame = 0

    @property
    def moves(self) -> bool:
        """Something on the screen turns, so ``tick`` should be called ten times a second."""
        return self._live

    @property
    def seconds(self) -> float:
        return self._elapsed() - self._began

    def show(self, target: Target, obj: Object | None, over: bool = False) -> None:
        """``obj`` is how the object stands now; None: it isn't there. ``over``: its result is told elsewhere."""
        if obj is not None:
            self._show_place(target, obj)
        if obj is None or over:
            self._lines.pop(target.what, None)
            self._draw()
            return
        phase = "Deleting" if obj.get("deleting_since") else str(dig(obj, "status.phase", "Pending"))
        steps = [_step(step) for step in dig(obj, "status.steps", [])] if phase in _UNDER_WAY else []
        if obj["kind"] == "function" and dig(obj, "status.message"):
            phase = f"{phase}: {dig(obj, 'status.message')}"
        if self._live:
            self._lines[target.what] = "   ".join([f"{target.what}  {phase}", *steps])
            self._draw()
        else:
            for word in (_COUNTED.sub(r": \1", phase), *(step for step in steps if not step.endswith("…"))):
                if (target.what, word) not in self._told:
                    self._told.add((target.what, word))
                    self._print(f"{target.what}  {word}")

    def draw(self, target: Target, live: str, told: str) -> None:
        """How ``target`` stands in a line of its own: on a terminal ``live``, off it the same once for each ``told``."""
        if self._live:
            self._lines[target.what] = live
            self._draw()
        elif (target.what, told) not in self._told:
            self._told.add((target.what, told))
            self._print(live)

    def say(self, line: str) -> None:
        """A line that stays, above what moves."""
        self._print(line)

    def tick(self) -> None:
        """Turn the wheel."""
        self._frame += 1
        self._draw()

    def end(self) -> None:
        """Take the live lines away; what follows is printed in their place."""
        self._lines.clear()
        self._draw()

    def _show_place(self, target: Target, obj: Object) -> None:
        node = dig(obj, "status.node")
        if node and self._placed.get(target.what) != node and self._find_decision is not None:
            self._placed[target.what] = node
            decision = self._find_decision(target)
            self._print(f"{target.what}  {describe_choice(decision, node)}")
            for note in read_notes(decision):
                self._print(f"{target.what}  note: {note}")

    def _print(self, line: str) -> None:
        if self._silent:
            return
        self._erase()
        self._stream.write(clean(line) + "\n")
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
        lines = [f"{text.replace('…', wheel)}  {self.seconds:.1f} s" for text in list(self._lines.values())[:10]]
        lines = [self._paint.color(clean(line)[: width - 1], "dim") for line in lines]
        self._stream.write("\n".join(lines))
        self._drawn = len(lines)
        self._stream.flush()


def _step(step: Mapping[str, Any]) -> str:
    """``disk ✓ 8 ms``; what is still being done ends with the sign that turns."""
    name, detail = step.get("name", ""), str(step.get("detail") or "")
    sign = _SIGNS.get(str(step.get("state")))
    return " ".join(part for part in ((name, sign, detail) if sign else (name, detail, "…")) if part)

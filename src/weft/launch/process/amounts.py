"""Numbers, sizes and durations on the command lines of the server and the agent, each with its range. Pure.

Each function makes an argparse type; argparse puts the option's name before its ArgumentTypeError."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_bytes, format_duration, parse_bytes, parse_cpu, parse_duration
from weft.objects.schema import suggest

T = TypeVar("T")
_SHOWN = 60
_UNKNOWN = "unrecognized arguments: "  # argparse's words


class Parser(argparse.ArgumentParser):
    """Takes the ``-5m`` of ``--since -5m`` for a value, which its type then refuses in words. argparse takes it for an option, and
    says that the value is missing."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse like argparse; an empty value means nothing anywhere: ``--listen ''`` is a variable that isn't set."""
        words = list(sys.argv[1:] if args is None else args)
        places = [action.metavar for action in self._actions if not action.option_strings]
        place = places[0] if len(places) == 1 and places[0] else "an argument"
        for before, word in itertools.pairwise(["", *words]):
            if not word:
                self.error(f"{before if before.startswith('--') else place} must not be empty")
            if re.fullmatch(r"--[a-z0-9-]+=", word):
                self.error(f"{word[:-1]} must not be empty")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with a line that says what is wrong, and one that says what to type: not with all options."""
        hint = f"{self.prog} --help"
        if message.startswith(_UNKNOWN):
            word = message.removeprefix(_UNKNOWN).split()[0].partition("=")[0]
            meant = suggest(word, list(self._option_string_actions))
            message, hint = f"no such option: {word}", f"did you mean {meant}?" if meant else hint
        self.exit(2, f"error: {message}\n  {hint}\n")


def count(least: int, most: int) -> Callable[[str], int]:
    """A whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"give a whole number from {least} to {most}, not {text[:_SHOWN]!r}")
        return int(text)

    return read


def percent(text: str) -> float:
    """``0.5%`` as 0.005."""
    number = text.removesuffix("%")
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", number) or float(number) > 100:
        raise argparse.ArgumentTypeError(f"give a percentage from 0% to 100%, like 1%, not {text[:_SHOWN]!r}")
    return float(number) / 100


def port() -> Callable[[str], int]:
    return count(1, 65_535)


def duration(least: float = 0.0) -> Callable[[str], float]:
    """Seconds, at least ``least``."""

    def read(text: str) -> float:
        seconds = _parse(parse_duration, text)
        if seconds < least:
            raise argparse.ArgumentTypeError(
                f"give a duration from {format_duration(least)} to 100 years, not {text[:_SHOWN]!r}"
            )
        return seconds

    return read


def size(least: int) -> Callable[[str], int]:
    """Bytes, at least ``least``."""

    def read(text: str) -> int:
        amount = _parse(parse_bytes, text)
        if amount < least:
            raise argparse.ArgumentTypeError(f"give a size of {format_bytes(least)} or more, not {text[:_SHOWN]!r}")
        return amount

    return read


def cores() -> Callable[[str], float]:
    return lambda text: _parse(parse_cpu, text)


def _parse(parse: Callable[[object, str], T], text: str) -> T:
    try:
        return parse(text, "value")
    except InvalidInput as problem:
        raise argparse.ArgumentTypeError(f"{problem.message.removeprefix('value: ')}; {problem.hint}") from None

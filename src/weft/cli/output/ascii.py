"""Signs for terminals that know only ASCII: each is replaced by a similar one of the same width. Pure."""

from __future__ import annotations

import codecs
from typing import TextIO

NAME = "weft-plain"
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("█▉▊▋▌", "#"),
        **dict.fromkeys("▍▎▏", "|"),
        **dict(zip("▁▂▃▄▅▆▇", "_.-:=+*", strict=True)),
        **dict.fromkeys("–—−", "-"),
        **dict.fromkeys("→›", ">"),
        **dict.fromkeys("«»“”„", '"'),
        **dict.fromkeys("’‘", "'"),
        **dict.fromkeys("·•", "."),
        **dict(zip("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\|/-\\|/", strict=True)),
        "…": "~",
        "✓": "+",
        "✗": "x",
        "×": "x",
        "±": "~",
        "≥": ">",
        "≤": "<",
        "░": ".",
    }
)


def show_plainly(stream: TextIO) -> None:
    """Have ``stream`` write what it can't encode as the sign most like it, or as ``?``."""
    codecs.register_error(NAME, _replace)
    stream.reconfigure(errors=NAME)  # type: ignore[attr-defined]  # streams of other kinds are not given here


def make_plain(text: str) -> str:
    """``text`` in ASCII, as long as it was."""
    return "".join(sign if sign.isascii() else "?" for sign in text.translate(_ALIKE))


def _replace(problem: UnicodeError) -> tuple[str, int]:
    assert isinstance(problem, UnicodeEncodeError)
    return make_plain(problem.object[problem.start : problem.end]), problem.end

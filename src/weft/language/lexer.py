"""Splits the text of a constraint into words and signs, each with its place. Pure."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from weft.language.complaint import point_at

MOST_CHARACTERS = 4096
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<word>[A-Za-z0-9._/:%+-]+)
      | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<sign>[=!<>&|~^]+)
      | (?P<mark>[(),@])""",
    re.VERBOSE | re.DOTALL,
)
_SIGNS = ("=", "==", "!=", "<", ">", "<=", ">=")
_MEANT = {
    "=>": ">=",
    "=<": "<=",
    "<>": "!=",
    "===": "=",
    "!==": "!=",
    "&&": "AND",
    "&": "AND",
    "||": "OR",
    "|": "OR",
    "!": "NOT",
}


class Token(msgspec.Struct, frozen=True):
    """The last token's ``kind`` is end. ``text`` of a quoted one is without its quotation marks."""

    kind: Literal["word", "quoted", "sign", "mark", "end"]
    text: str
    at: int
    length: int


def split(text: str, field: str) -> list[Token]:
    """The tokens of ``text``. Raises InvalidInput at the first character that begins none."""
    if len(text) > MOST_CHARACTERS:
        raise point_at(
            text[: MOST_CHARACTERS + 1],
            MOST_CHARACTERS,
            1,
            f"longer than {MOST_CHARACTERS} characters",
            field,
            "shorten the expression",
        )
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _refuse(text, at, field)
        kind, found = match.lastgroup, match[0]
        if kind == "sign" and found not in _SIGNS:
            meant = _MEANT.get(found)
            raise point_at(
                text, at, len(found), f"{found[:20]!r} is not an operator", field,
                f"did you mean {meant}?" if meant else "operators: = != < <= > >=, in, not_in, exists(…); AND, OR, NOT",
            )  # fmt: skip
        if kind == "quoted":
            meaning = re.sub(r"\\(.)", r"\1", found[1:-1], flags=re.DOTALL)
            if not meaning.isprintable():
                raise point_at(text, at, len(found), "a character that can't be printed", field)
            tokens.append(Token("quoted", meaning, at, len(found)))
        elif kind != "space":
            tokens.append(Token(kind, found, at, len(found)))  # type: ignore[arg-type]  # the group's name is the kind
        at = match.end()
    tokens.append(Token("end", "", len(text), 1))
    return tokens


def _refuse(text: str, at: int, field: str) -> Exception:
    if text[at] in "\"'":
        return point_at(text, at, 1, "this quotation isn't closed", field, f"close it with {text[at]}")
    if text[at] == ";":
        return point_at(
            text, at, 1, "';' can't be used here", field, "only ;weight=0-1 and ;priority=N end a preference"
        )
    return point_at(
        text, at, 1, f"{text[at]!r} can't be used here", field, 'put unusual values into quotation marks: name="a b"'
    )

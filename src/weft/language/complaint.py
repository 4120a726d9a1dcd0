"""Errors of a constraint, with the character. Pure."""

from __future__ import annotations

from weft.objects.errors import InvalidInput

_SHOWN = 72


def point_at(text: str, at: int, length: int, fact: str, field: str, hint: str | None = None) -> InvalidInput:
    """The error for ``length`` characters of ``text`` from ``at``. Its details have the position, for commands to show."""
    return InvalidInput(
        f"{field}: character {at + 1}: {fact}",
        field=field,
        hint=hint,
        details={"expression": text, "at": at, "length": length},
    )


def draw_caret(text: str, at: int, length: int) -> list[str]:
    """Two lines: ``text``, or the part of a long one around ``at``, and carets below the place."""
    first = max(0, min(at - _SHOWN // 2, len(text) - _SHOWN)) if len(text) > _SHOWN else 0
    shown = "".join(c if c.isprintable() else " " for c in text[first : first + _SHOWN])
    left = "…" if first else ""
    right = "…" if first + _SHOWN < len(text) else ""
    carets = "^" * max(1, min(length, _SHOWN - (at - first)))
    return [f"  {left}{shown}{right}", "  " + " " * (len(left) + at - first) + carets]

"""The sentence that people read of an alert: the rule's summary, with what the alert's labels and value say. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from weft.objects.errors import InvalidInput

MOST_SUMMARY = 400  # characters, of the rule's and of what comes of it
_PART = re.compile(r"\{\{\s*(?:\$labels\.([A-Za-z_][A-Za-z0-9_]*)|\$value)\s*\}\}")


def check_summary(text: str, field: str) -> None:
    """Raises InvalidInput where something else than labels and the value is asked for."""
    if "{{" in _PART.sub("", text) or not text.isprintable():
        raise InvalidInput(
            f"{field}: it may have only labels and the value in double braces",
            field=field,
            hint="write {{ $labels.node }} or {{ $value }}, on one line",
        )


def render_summary(text: str, labels: Mapping[str, str], value: float) -> str:
    """``text`` with labels and value in place. What comes from series is data: it is cut, and has no control characters."""

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        return format_value(value) if name is None else labels.get(name, "")

    rendered = _PART.sub(fill, text)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in rendered)[:MOST_SUMMARY]


def format_value(value: float) -> str:
    """Four digits, as people read it."""
    return f"{value:.0f}" if value == round(value, 0) and abs(value) < 1e15 else f"{value:.4g}"

"""Sentences of bounded length, which end where people can read on: behind a sentence or a word, never within one."""

from __future__ import annotations

_LEFT_OUT = " …"
_ENDS = (". ", "; ")


def shorten(text: str, most: int) -> str:
    """``text`` in ``most`` characters: up to the end of a sentence, or before a remedy in brackets that would be cut in two; where
    none is in its second half, up to the end of a word."""
    if len(text) <= most:
        return text
    head = text[: max(0, most - len(_LEFT_OUT) + 1)]
    places = [head.rfind(end) for end in _ENDS]
    if head.rfind("(") > head.rfind(")"):
        places.append(head.rfind("("))
    end = max(places)
    if end < most // 2:
        end = head.rfind(" ")
    return f"{head[: end if end > 0 else -1].rstrip(' .,;:')}{_LEFT_OUT}"[:most]

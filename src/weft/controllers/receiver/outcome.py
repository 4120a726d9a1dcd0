"""How one attempt to notify a receiver ended, in words that hold no secret. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

import msgspec

MOST_ANSWER = 200  # characters that are kept of a receiver's answer
_NEVER = (400, 410, 413, 422)  # answers that another attempt with the same body won't change
_UNSEEN = re.compile(r"[^\x20-\x7e\u00a0-\u024f\u2010-\u2027]+")


class DeliveryOutcome(msgspec.Struct, frozen=True):
    ok: bool
    code: int = 0  # that it answered with; 0: no answer
    answer: str = ""
    again: bool = True  # whether another attempt may succeed


def judge(code: int, body: str) -> DeliveryOutcome:
    """The outcome of an answer with an HTTP status."""
    words = f"HTTP {code}" + (f": {body}" if body else "")
    if 300 <= code < 400:
        words = f"HTTP {code}: it redirects, which is not followed; give the URL that it redirects to"
    return DeliveryOutcome(200 <= code < 300, code, words, code not in _NEVER)


def clean(text: str, most: int = MOST_ANSWER) -> str:
    """One line of it, without control and other odd characters."""
    line = _UNSEEN.sub(" ", text[: 4 * most]).strip()
    return line if len(line) <= most else f"{line[: most - 1]}…"


def hide(text: str, secrets: Mapping[str, str]) -> str:
    """``text`` without the values of ``secrets``, also as they are encoded on their way: a receiver may repeat what it was sent."""
    username, password = secrets.get("username", ""), secrets.get("password", "")
    hidden = [value for key, value in secrets.items() if value and key != "username"]
    if password:
        hidden += [f"{username}:{password}", f"\0{username}\0{password}"]
    for one in hidden:
        for form in (one, base64.b64encode(one.encode()).decode()):
            text = text.replace(form, "(hidden)")
    return text

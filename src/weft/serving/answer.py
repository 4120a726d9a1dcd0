"""One answer, whole."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Answer(msgspec.Struct):
    """``headers`` beside Content-Length and Connection, which the server sets; they were checked for line breaks."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


Refuse = Callable[[int, str], Answer | None]  # words what the server itself turns away; None: hang up without a word

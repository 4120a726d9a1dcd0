"""Reads of commands that follow: a server that restarts doesn't end them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from weft.cli.session import Session
from weft.objects.errors import Unavailable

AGAIN_SECONDS = 1.0
Found = TypeVar("Found")


def read_again(session: Session, read: Callable[[], Found], until: float = math.inf) -> Found:
    """The result of ``read``, tried until a server answers. Raises Unavailable at ``until`` of the session's clock, or once
    the session rests no more."""
    told = False
    while True:
        try:
            return read()
        except Unavailable as trouble:
            if not told:
                session.notify(f"{trouble.message}; trying again")
            told = True
            if session.clock.elapsed() >= until or not session.rests(AGAIN_SECONDS):
                raise

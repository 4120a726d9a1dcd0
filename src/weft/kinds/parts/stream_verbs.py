"""Inputs of the verbs that answer with a stream, of any workload."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ExecInput(msgspec.Struct):
    """``argv`` goes to the guest unchanged; no shell is put between."""

    argv: list[str]
    env: dict[str, str] = {}
    cwd: str = ""
    tty: bool = False


class ConsoleInput(msgspec.Struct):
    pass


class LogsInput(msgspec.Struct):
    """``tail`` last lines first (-1: all), then on if ``follow``. ``since``: only lines of the last so many seconds (0: all); of a
    VM's console to within 5 s, more rather than less."""

    follow: bool = False
    tail: int = -1
    since: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class ForwardInput(msgspec.Struct):
    """A TCP port of the guest's first NIC; ``patience``: for how many seconds to try while nothing listens there."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    patience: Annotated[float, msgspec.Meta(ge=0, le=300)] = 0.0


class ScreenInput(msgspec.Struct):
    pass

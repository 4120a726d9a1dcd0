"""Whether a machine's guest has come up: its agent answers, or, where it has none, its console asks for a name or a command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.driver.runtime import HasConsole

_TAIL_BYTES = 512
# The end of what it printed: "web login: ", "# ", "$ ", each perhaps with an escape sequence behind it.
_PROMPT = re.compile(rb"(login:|[#$>]) ?(\x1b\[[0-9;?]*[A-Za-z])*$")


class CheckResult(msgspec.Struct, frozen=True):
    well: bool
    message: str = ""  # why not
    silent: bool = False  # it said nothing in time, neither yes nor no


async def ask_guest(guest_id: str, runtime: Any) -> CheckResult:
    """Raises WeftError, OSError."""
    facts = await runtime.inspect(guest_id)
    if facts.ready is True:
        return CheckResult(True)
    if facts.ready is None and isinstance(runtime, HasConsole) and is_prompt(_read_tail(runtime.console_log(guest_id))):
        return CheckResult(True)
    if facts.ready is False:
        return CheckResult(False, "its agent does not answer")
    return CheckResult(False, "no agent in it answers, and its console shows no prompt")


def is_prompt(printed: bytes) -> bool:
    """Whether a console waits for input, by the end of what it printed."""
    return _PROMPT.search(printed) is not None


def _read_tail(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read()
    except FileNotFoundError:
        return b""

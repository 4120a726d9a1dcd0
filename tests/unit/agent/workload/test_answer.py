"""Whether a guest has come up, by its agent or its console."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.agent.workload.answer import CheckResult, ask_guest, is_prompt
from weft.contracts.driver.runtime import GuestFacts


class Machine:
    def __init__(self, ready: bool | None, log: Path) -> None:
        self._facts, self._log = GuestFacts("g", "u", "web", 1, state="running", ready=ready), log

    async def inspect(self, guest_id: str) -> GuestFacts:
        return self._facts

    def console_log(self, guest_id: str) -> str:
        return str(self._log)

    def console_socket(self, guest_id: str) -> str:
        return "unused"


@pytest.mark.parametrize(
    ("printed", "waits"),
    [
        (b"Debian\r\n\r\nweb login: ", True),
        (b"/ # ", True),
        (b"web:~$ \x1b[6n", True),
        (b"[  1.2] Kernel panic - not syncing\r\n", False),
        (b"login: root\r\nPassword", False),
        (b"", False),
    ],
)
def test_a_prompt_is_at_the_end_of_what_was_printed(printed: bytes, waits: bool) -> None:
    assert is_prompt(printed) is waits


async def test_a_guest_answers_by_its_agent_else_by_its_console(tmp_path: Path) -> None:
    log = tmp_path / "console"
    assert await ask_guest("g", Machine(True, log)) == CheckResult(True)
    assert await ask_guest("g", Machine(False, log)) == CheckResult(False, "its agent does not answer")
    silent = await ask_guest("g", Machine(None, log))
    assert silent == CheckResult(False, "no agent in it answers, and its console shows no prompt")
    log.write_bytes(b"x" * 5000 + b"\nweb login: ")
    assert await ask_guest("g", Machine(None, log)) == CheckResult(True)
    assert not (await ask_guest("g", Machine(False, log))).well  # it has an agent: that must answer

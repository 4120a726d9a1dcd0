"""A soak that asks until its wish is taken: a name that is still being deleted is not its own wish, taken before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from subprocess import CompletedProcess

import pytest
from benchmarks import soak
from benchmarks.soak import Progress, Soak
from benchmarks.soak.refusals import is_taken


def said(code: int, reason: str = "") -> CompletedProcess[bytes]:
    told = json.dumps({"code": reason, "message": "…"}) if reason else ""
    return CompletedProcess([], code, b"", b"warning: the server is new\n" * bool(reason) + told.encode())


@pytest.mark.parametrize(
    ("done", "asked_before", "taken"),
    [
        (said(0), False, True),
        (said(5, "alreadyExists"), True, True),
        (said(5, "alreadyExists"), False, False),
        (said(5, "beingDeleted"), True, None),
        (said(5, "beingDeleted"), False, None),
        (said(5, "inUse"), True, False),
        (said(5), True, False),
        (said(1, "unavailable"), True, None),
    ],
)
def test_a_create_is_taken_when_it_is_or_was_before(
    done: CompletedProcess[bytes], asked_before: bool, taken: bool | None
) -> None:
    assert is_taken(done, creates=True, asked_before=asked_before) is taken


def test_a_verb_that_is_not_legal_is_not_taken() -> None:
    assert is_taken(said(5, "beingDeleted"), creates=False, asked_before=True) is False


class Server:
    """Answers one after the other; what it makes is there from then on."""

    def __init__(self, answers: Sequence[CompletedProcess[bytes]]) -> None:
        self.answers, self.made = list(answers), False

    def run(self, *words: str) -> CompletedProcess[bytes]:
        answer = self.answers.pop(0)
        self.made |= answer.returncode == 0
        return answer


def test_the_soak_asks_again_until_the_former_owner_of_the_name_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "ASKED_EVERY_SECONDS", 0.0)
    server = Server([said(5, "beingDeleted"), said(1), said(5, "beingDeleted"), said(0)])
    assert Soak(server, Progress(1)).ask("create", "vm", "create", "s5")  # type: ignore[arg-type]
    assert server.made and not server.answers

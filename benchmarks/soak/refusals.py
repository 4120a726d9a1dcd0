"""What an answer of ``weft`` means to a soak that asks until its wish is taken, whoever was killed meanwhile."""

from __future__ import annotations

import json
from subprocess import CompletedProcess

DONE, GONE, CONFLICT = 0, 3, 5  # exit codes


def is_taken(done: CompletedProcess[bytes], *, creates: bool, asked_before: bool) -> bool | None:
    """Whether what was asked for, with ``-o json``, was taken; None: nobody can say yet, ask again.

    What is created again is there already, by the first time. A name whose former owner is still being deleted isn't that:
    it will be free."""
    if done.returncode in (DONE, GONE):
        return True
    if done.returncode != CONFLICT:
        return None
    if not creates:
        return False
    reason = _read_reason(done.stderr)
    if reason == "beingDeleted":
        return None
    return asked_before and reason == "alreadyExists"


def _read_reason(told: bytes) -> str:
    """The reason in the last line on standard error; empty if it can't be read."""
    try:
        return str(json.loads(told.splitlines()[-1])["code"])
    except (ValueError, LookupError, TypeError):
        return ""

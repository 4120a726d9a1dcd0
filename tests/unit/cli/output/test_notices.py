"""What a command says beside its data."""

from __future__ import annotations

import sys

import pytest

from weft.cli.session import Session
from weft.contracts.clock import SystemClock


def test_a_notice_is_one_write_so_threads_do_not_mix_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", writes.append)
    Session(SystemClock, {"WEFT_SERVER": "https://127.0.0.1:1"}).notify("vm/web: it is gone")
    assert [each for each in writes if each] == ["vm/web: it is gone\n"]

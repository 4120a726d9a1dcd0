"""What a server that isn't started says of its state folder."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from weft.launch.server.lock import FILE, hold_server
from weft.launch.server.main import main
from weft.launch.server.membership.identity import keep_identity
from weft.launch.server.membership.removal import note_removal
from weft.launch.store.engine import MEMBERS, check_store
from weft.objects.errors import InUse, Unavailable


def test_members_of_which_the_server_has_none_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="has no member of a store"):
        check_store(tmp_path, MEMBERS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["backup", "kept"], ["restore", "kept"], ["move-store", "--confirm"]])
def test_a_server_that_was_removed_gives_nothing_away(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "server"
    state.mkdir()
    keep_identity(state, "s2")
    note_removal(state)
    before = sorted(tmp_path.rglob("*"))
    assert main([*words, "--state", str(state)]) == 5
    assert "server s2 was removed from its fabric" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("holder", ["0", "x"])
def test_a_process_that_is_no_server_here_is_not_to_be_killed(holder: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(holder)
    with (tmp_path / FILE).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as from another namespace for processes
        with pytest.raises(InUse) as refused, hold_server(tmp_path):
            raise AssertionError
    assert refused.value.message == f"another server uses {tmp_path}"
    assert refused.value.hint == "stop that server first"

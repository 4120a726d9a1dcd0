"""What a server that isn't started says of its state folder."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from weft.launch.server.lock import FILE, hold_server
from weft.launch.server.main import main
from weft.launch.server.membership.identity import keep_identity
from weft.launch.server.membership.removal import note_removal
from weft.launch.store.engine import MEMBERS, SQLITE, check_store, remember_store
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


@pytest.mark.parametrize(
    ("words", "code", "said", "remedy"),
    [
        (["backup", "kept", "--state", "begun"], 1, "the server in begun was never started", "start it first"),
        (["move-store", "--back", "--state", "begun"], 1, "/begun was never started", "start it first"),
        (["backup", "kept", "--state", "none"], 2, "none is not a server's state folder", "as --state"),
        (["move-store", "--back", "--state", "none"], 2, "none is not a server's state folder", "as --state"),
        (["backup", "kept"], 2, "no server given", "give --state"),
        (["move-store", "--back"], 2, "no server given", "give --state"),
        (["restore", "kept", "--state", "file"], 2, "--state file is not a folder", "give the server's folder"),
        (["restore", "none", "--state", "new"], 2, "none is a folder", "name a file"),
        (["move-store", "members", "--state", "ran"], 2, "objects are kept in members already", "another store"),
        (["--store", "members", "--state", "old"], 5, "in old keeps its objects in sqlite", "members --member ADDRESS"),
        (["init", "--server", "Ünï", "--member", "127.0.0.1", "--state", "new"], 2, "--server 'Ünï'", "use a-z"),
    ],
)
def test_each_wrong_folder_is_named_for_what_it_is(
    words: list[str],
    code: int,
    said: str,
    remedy: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, store in (("begun", MEMBERS), ("ran", MEMBERS), ("old", SQLITE), ("none", "")):
        Path(name).mkdir()
        if store:
            remember_store(Path(name), store)
    Path("ran/ca.crt").touch()
    Path("file").touch()
    assert main(words) == code
    assert said in (shown := capsys.readouterr().err) and remedy in shown


@pytest.mark.parametrize("holder", ["0", "x"])
def test_a_process_that_is_no_server_here_is_not_to_be_killed(holder: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(holder)
    with (tmp_path / FILE).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as from another namespace for processes
        with pytest.raises(InUse) as refused, hold_server(tmp_path):
            raise AssertionError
    assert refused.value.message == f"another server uses {tmp_path}"
    assert refused.value.hint == "stop that server first"


def test_a_command_that_works_in_the_folder_is_waited_for(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "print(flush=True); input()", "weft", "server", "restore", "saved"]
    with subprocess.Popen(words, stdin=-1, stdout=-1) as process, (tmp_path / FILE).open("w+") as lock:
        assert process.stdout is not None and process.stdout.readline() == b"\n"  # it has its command line
        lock.write(f"{process.pid}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = f"weft server restore works in .*: process {process.pid}"
        with pytest.raises(InUse, match=said) as refused, hold_server(tmp_path):
            raise AssertionError
        process.kill()
    assert refused.value.hint == "wait until it has ended"


def test_a_wrong_name_leaves_no_mark_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for each in (one, two, three):
            each.bind(("127.0.0.1", 0))
        places = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two, three)]
    flags = [word for pair in zip(("--listen", "--gateway", "--functions"), places, strict=True) for word in pair]
    assert main(["--state", str(tmp_path), "--server", "S_1", *flags]) == 2
    assert "--server 'S_1' is not a valid name" in capsys.readouterr().err
    assert not (tmp_path / "store.url").exists()

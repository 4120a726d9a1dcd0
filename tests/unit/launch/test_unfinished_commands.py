"""A command that prepares a server's state folder and is killed half-way: no server starts there until it was run again."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weft.client.answer import ClientAnswer
from weft.contracts.clock import SystemClock
from weft.contracts.store import Put
from weft.launch.server import backup
from weft.launch.server.main import main
from weft.launch.server.membership import init, join
from weft.launch.server.unfinished import FILE, read_unfinished
from weft.launch.store.engine import MEMBERS, make_store, recall_store, remember_store
from weft.launch.store.member import DATA, FOLDER, begin_member
from weft.protocol.server.join import read_place
from weft.store.backup import write_backup
from weft.store.etcd.refill import EtcdRefill
from weft.store.sqlite import SqliteStore
from weft.trust.tokens import make_token

CONFLICT = 5
ENTRY = "from weft.launch.entry import main; main()"
RESTORE_STEPS = [
    *(("sqlite", step) for step in ("refill_store", "write_durably", "remember_store", "note_finished")),
    *((MEMBERS, step) for step in ("begin_member", "refill_store")),  # the later ones need etcd
]
INIT_STEPS = ("keep_identity", "begin_member", "remember_store", "note_finished")
JOIN_STEPS = ("_ask", "write_keys", "note_finished")


def killed(monkeypatch: pytest.MonkeyPatch, module: Any, step: str, words: list[str]) -> None:
    """Run ``weft server`` in a process of its own, which is killed when it has come to the step."""
    if (child := os.fork()) == 0:
        gc.disable()  # else threads are waited for that only the parent has
        signal.alarm(60)
        monkeypatch.setattr(module, step, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        try:
            main(words)
        finally:
            os._exit(0)  # also if it fails: else it would go on with the parent's tests
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def refused(state: Path, said: str, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether a server, a backup and a move of the store are refused, and leave the folder as it is."""
    before = sorted(state.rglob("*"))
    for words in (
        ("--listen=192.0.2.1:1", "--metrics=off"),  # an address that no machine has: a start would fail there
        ("api", "--listen=192.0.2.1:1"),
        ("backup", str(state.parent / "b2")),
        ("move-store", "sqlite"),
    ):
        assert main([*words, f"--state={state}"]) == CONFLICT
        assert said in capsys.readouterr().err
    return {*before, state / "server.lock"} == {*state.rglob("*"), state / "server.lock"}


async def make_backup(tmp_path: Path) -> Path:
    store = SqliteStore(tmp_path / "source.db", SystemClock())
    await store.open()
    await store.commit([Put("/thing/a", b'{"name": "a"}')])
    files = {"ca.crt": "cert", "ca.key": "key"}
    await write_backup(tmp_path / "b", store, lambda: files, weft="1", taken_at=1.0)
    await store.close()
    return tmp_path / "b"


async def read_keys(state: Path) -> list[str]:
    store = make_store("sqlite", state, SystemClock())
    await store.open()
    found = await store.list("")
    await store.close()
    return [one.key for one in found.entries]


@pytest.mark.parametrize(("url", "step"), RESTORE_STEPS)
def test_a_restore_that_was_killed(
    url: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state, file = tmp_path / "state", asyncio.run(make_backup(tmp_path))
    words = ["restore", str(file), "--state", str(state)]
    if url == MEMBERS:
        begin_member(state, "s1", read_place("127.0.0.1:1"))
        (state / FOLDER / DATA).mkdir()
        remember_store(state, MEMBERS)
    monkeypatch.setattr(backup, "find_etcd", lambda: "etcd")
    killed(monkeypatch, backup, step, words)
    again = f"run it again: weft server restore {file} --state {state}\n"
    assert refused(state, again, capsys)
    if url == "sqlite":
        assert main(words) == 0 and read_unfinished(state) is None
        assert asyncio.run(read_keys(state)) == ["/thing/a"] and (state / "ca.key").read_text() == "key"


def test_what_a_restore_says_again_has_the_store_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state, file = tmp_path / "state", asyncio.run(make_backup(tmp_path))
    words = ["restore", str(file), "--state", str(state), "--store", "etcd://x:1"]
    killed(monkeypatch, backup, "refill_store", words)
    assert refused(state, f"{file} --state {state} --store etcd://x:1\n", capsys)


def test_a_restore_that_is_refused_leaves_no_mark_that_was_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, file = tmp_path / "state", asyncio.run(make_backup(tmp_path))
    words = ["restore", str(file), "--state", str(state), "--store", "etcd:///nowhere"]
    monkeypatch.setitem(EtcdRefill.__init__.__kwdefaults__, "timeout_seconds", 0.5)
    assert main(words) == 1 and not state.exists()
    killed(monkeypatch, backup, "refill_store", words)
    assert main(words) == 1 and (state / FILE).exists()


@pytest.mark.parametrize("step", INIT_STEPS)
def test_an_init_that_was_killed(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step_of in ("find_etcd", "check_place"):
        monkeypatch.setattr(init, step_of, lambda *_: None)
    state = tmp_path / "state"
    words = ["init", "--state", str(state), "--member", "127.0.0.1:4379"]
    killed(monkeypatch, init, step, words)
    assert refused(state, f"run it again: weft server init --state {state} --server s1 --member 127.0.0.1:4379", capsys)
    half = [state / ".server.json.9", state / ".unfinished.9"]  # of a process that was killed as it wrote
    for file in half:
        file.touch()
    assert main(words) == 0 and read_unfinished(state) is None and recall_store(state) == MEMBERS
    assert not any(file.exists() for file in half)
    assert main(words) == CONFLICT


@pytest.mark.parametrize("step", JOIN_STEPS)
def test_a_join_that_was_killed(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(join, "fetch_ca", lambda *_: "ca")
    if step != "_ask":
        monkeypatch.setattr(join, "_ask", lambda *_: ClientAnswer(200, {}, b'{"sealed": ""}'))
        monkeypatch.setattr(join, "unseal", lambda *_: b'{"store": "etcd://x:1", "files": {"ca.key": "a2V5"}}')
    state = tmp_path / "state"
    token = make_token("t")[0]
    killed(
        monkeypatch,
        join,
        step,
        [
            "join",
            "https://127.0.0.1:1",
            f"--token={token}",
            f"--ca-sha256={'0' * 64}",
            f"--state={state}",
            "--server=m61",
        ],
    )
    assert refused(state, f"remove {state}; at a server of the fabric: weft server delete m61", capsys)
    assert token not in (state / FILE).read_text()


def test_a_command_that_is_interrupted_says_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        words = ["join", url, f"--token={make_token('t')[0]}", f"--ca-sha256={'0' * 64}", "--server=s2"]
        command = subprocess.Popen(
            [sys.executable, "-c", ENTRY, "server", *words, f"--state={tmp_path / 's2'}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(60)
        with silent.accept()[0]:  # it waits for an answer now
            command.send_signal(signal.SIGINT)
            assert command.communicate(timeout=60)[1] == "interrupted\n"
    assert command.returncode == 130 and not (tmp_path / "s2").exists()


@pytest.mark.parametrize("words", [["server", "--help"], ["agent", "--help"], ["server", "config"]])
def test_a_command_whose_output_nobody_reads_ends_in_silence(words: list[str]) -> None:
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.stderr is not None and command.stderr.read() == ""
    assert command.wait(60) == 141

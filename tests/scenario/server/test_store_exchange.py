"""``weft server move-store`` beside the real processes and a real etcd: while they work, killed at each step, and refused."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM, EtcdServer
from tests.long import mark_long
from tests.scenario.server.servers_lab import Fabric, Server, read_servers, tried
from tests.scenario.server.test_api_process import ApiProcess
from tests.scenario.server.test_server_log import until

from weft.client import Client
from weft.client.context import read_context
from weft.launch.server.exchange.command import main
from weft.launch.store.engine import recall_store
from weft.launch.store.exchange import read_exchange
from weft.objects.errors import CursorGone, Unavailable
from weft.store.copy import StoreCopy
from weft.store.etcd.refill import EtcdRefill

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)")

# Ends a process (sys.argv[2]; 0: itself) before or after one of the methods that the copying process calls.
CUT_SHORT = """
import asyncio, os, signal, sys
from weft.launch.server.exchange.command import main
from weft.store.copy import StoreCopy
from weft.store.remote import RemoteStore
name, when = sys.argv[1].split(":")
owner = StoreCopy if hasattr(StoreCopy, name) else RemoteStore
pid = int(sys.argv[2]) or os.getpid()
original = getattr(owner, name)
async def cut_short(*given, **more):
    if when == "before":
        os.kill(pid, signal.SIGKILL)
    done = await original(*given, **more)
    if when == "after":
        os.kill(pid, signal.SIGKILL)
    return done
setattr(owner, name, cut_short)
sys.exit(main(sys.argv[3:]))
"""
# An API server that ends itself before or after the new store is remembered.
API_CUT_SHORT = """
import os, signal, sys
from weft.launch.server import api
from weft.launch.server.main import main
remember, when = api.remember_store, sys.argv.pop(1)
def cut_short(*given):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    remember(*given)
    os.kill(os.getpid(), signal.SIGKILL)
api.remember_store = cut_short
sys.exit(main(sys.argv[1:]))
"""
COMMAND = "import sys; from weft.launch.server.exchange.command import main; sys.exit(main(sys.argv[1:]))"
START = "import sys; from weft.launch.server.main import main; sys.exit(main(sys.argv[1:]))"


def run(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*words, "--state", str(state)])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def run_program(program: str, state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", program, *words, "--state", str(state)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


def ok(state: Path, *words: str) -> str:
    done = run(state, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(state: Path, *words: str) -> str:
    done = run(state, *words)
    assert done.returncode != 0, done.stdout + done.stderr
    return done.stderr


@contextmanager
def writing(client: Client, writers: int = 4) -> Iterator[list[str]]:
    """The names of volumes that were acknowledged; writers go on until the end of ``with``."""
    made: list[str] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        own = Client(client.context, patience_seconds=60)
        n = 0
        while not stop.is_set():
            name = f"v{writer}-{n}"
            own.create(volume(name), idempotency_key=f"key-{name}")
            made.append(name)
            n += 1
        own.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    until(lambda: len(made) >= 50)
    try:
        yield made
        reached = len(made)
        until(lambda: len(made) >= reached + 50)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def volume(name: str) -> dict[str, object]:
    return {"kind": "volume", "name": name, "spec": {"size": "1G"}}


def names_of(client: Client) -> list[str]:
    return sorted(one["name"] for one in client.list("volume").items)


def test_a_server_with_all_its_processes_goes_to_an_etcd_and_back_amid_writers(
    tmp_path: Path, etcd: EtcdServer
) -> None:
    state = tmp_path / "s1"
    state.mkdir()
    server = Server(state, "--server", "s1", "--store", "sqlite")
    try:
        client = server.connect(until(lambda: tried(lambda: read_context(state / "context.json"))))
        leads = lambda: tried(lambda: read_servers(client).get("s1") == ("Ready", ["controllers"]))  # noqa: E731
        until(leads)
        listed = client.list("volume")
        events = client.watch_forever("volume")
        with writing(client) as made:
            done = run(state, etcd.url)
            assert "both stores held" in done.stdout and "sqlite is kept as it was" in done.stdout
            assert "was started with --store" in done.stderr
            assert recall_store(state) == etcd.url
            with pytest.raises(CursorGone):
                list(client.watch("volume", listed.cursor))
            after = len(made)
            until(lambda: len(made) > after + 20)
            # what one that isn't confirmed allows
            assert "is still kept" in refused(state, "sqlite")
            assert "sqlite is kept as it was" not in ok(state, "--back")
            assert recall_store(state) == "sqlite"
        assert names_of(client) == sorted(made)
        seen = set[str]()
        for event in events:  # through both exchanges
            seen.add(event.object.get("name", ""))
            if seen >= set(made):
                break
        until(leads)
        assert "was removed" in ok(state, "--confirm")
        assert "no store is kept" in refused(state, "--back")
        # the controllers work on in the store that is in force
        client.delete("volume", made[0])
        until(lambda: made[0] not in names_of(client))
    finally:
        server.kill()


@pytest.mark.long
def test_a_lab_becomes_a_fabric_of_two_servers_with_a_member_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = Fabric(tmp_path)
    state = tmp_path / "s1"
    state.mkdir()
    fabric.servers["s1"] = Server(state, "--server", "s1", host=fabric.place(1).host)
    try:
        fabric.context = until(lambda: tried(lambda: read_context(state / "context.json")))
        client = fabric.client("s1")
        until(lambda: tried(lambda: read_servers(client).get("s1") == ("Ready", ["controllers"])))
        client.create(volume("a"))
        with writing(client, 1) as made:
            ok(state, "members", "--member", fabric.place(1).host)
            ok(state, "--confirm")
        assert not (state / "store.db").exists()
        begin = StoreCopy.begin

        async def join_meanwhile(copy: StoreCopy, note: str) -> None:
            await begin(copy, note)
            await asyncio.to_thread(fabric.take_in, 2)

        with monkeypatch.context() as late:
            late.setattr(StoreCopy, "begin", join_meanwhile)
            assert "other servers keep their objects in the same store: s2" in refused(state, "sqlite")
        fabric.start(2)
        assert names_of(fabric.client("s2")) == sorted([*made, "a"])
        assert "other servers keep their objects in the same store" in refused(state, "sqlite")
        fabric.servers["s1"].kill()
        fabric.servers["s1"].start()
        until(lambda: tried(lambda: names_of(client) == sorted([*made, "a"])))
    finally:
        for server in fabric.servers.values():
            server.kill()


def test_an_etcd_of_the_servers_own_runs_while_it_is_needed(tmp_path: Path) -> None:
    state = tmp_path / "s1"
    state.mkdir()
    server = Server(state, "--server", "s1")
    try:
        client = server.connect(until(lambda: tried(lambda: read_context(state / "context.json"))))
        until(lambda: tried(lambda: client.create(volume("a"))))
        ok(state, "etcd")
        ok(state, "--confirm")
        client.create(volume("b"))
        server.kill()
        server.start()
        until(lambda: tried(lambda: names_of(client) == ["a", "b"]))
        ok(state, "sqlite")
        ok(state, "--confirm")
        assert not (state / "etcd" / "data").exists() and names_of(client) == ["a", "b"]
    finally:
        server.kill()


@pytest.mark.long
def test_a_member_that_a_killed_command_has_begun_is_ended_before_another_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, place = tmp_path / "s1", Fabric(tmp_path).place(1)
    state.mkdir()
    server = Server(state, "--server", "s1")
    words = ("members", "--member", place.client)
    try:
        client = server.connect(until(lambda: tried(lambda: read_context(state / "context.json"))))
        until(lambda: tried(lambda: client.create(volume("a"))))
        for step in ("begin:after", "hold_commits:after"):
            killed = run_program(CUT_SHORT, state, step, "0", *words)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert "an older store is etcd/data.replaced" in ok(state, *words)
        data = state / "etcd" / "data"
        descriptors = Path(f"/proc/{server.find_process('etcd')}/fd")
        assert data / "member" / "snap" / "db" in {path.resolve() for path in descriptors.iterdir()}
        ok(state, "--confirm")
        ok(state, "sqlite")
        with monkeypatch.context() as broken:
            broken.setattr(StoreCopy, "finish", fail)
            assert "the copy is not equal" in refused(state, "--back")
        ok(state, "--back")  # to the member that still runs
        data.rename(tmp_path / "data")
        assert "is not the folder of the etcd" in refused(state, "--confirm")
        (tmp_path / "data").rename(data)
        ok(state, "--confirm")
        server.kill()
        server.start()
        until(lambda: tried(lambda: names_of(client) == ["a"]))
    finally:
        server.kill()


# Those that run in the soak leave the same as one of the others.
COPYING = ["begin:after", "catch_up:after", "hold_commits:after", "finish:before", "finish:after", "switch:after"]


@pytest.mark.parametrize("step", mark_long(COPYING, *COPYING[:5]))
def test_a_copying_process_that_is_killed_leaves_one_store_in_force(
    api: ApiProcess, etcd: EtcdServer, step: str
) -> None:
    api.start()
    client, url = api.connect(), etcd.url
    with writing(client) as made:
        done = run_program(CUT_SHORT, api.state, step, "0", url)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert recall_store(api.state) == (url if step == "switch:after" else "sqlite")
        after = len(made)
        until(lambda: len(made) > after + 20)  # writes go on, without another command
        if step != "switch:after":
            ok(api.state, url, *(["--overwrite"] if step == "finish:after" else []))
    assert names_of(client) == sorted(made)
    ok(api.state, "--back")
    assert names_of(client) == sorted(made)


@pytest.mark.parametrize(
    "step",
    [
        *(pytest.param(step, marks=pytest.mark.long) for step in ("begin:after", "hold_commits:after", "finish:after")),
        "switch:before",
    ],
)
def test_an_api_server_that_is_killed_meanwhile_loses_nothing(api: ApiProcess, etcd: EtcdServer, step: str) -> None:
    process = api.start()
    client, url = api.connect(), etcd.url
    with writing(client) as made:
        done = run_program(CUT_SHORT, api.state, step, str(process.pid), url)
        assert done.returncode > 0 and "Traceback" not in done.stderr, done.stderr
        assert recall_store(api.state) == "sqlite"
        process.wait()
        api.start()
        after = len(made)
        until(lambda: len(made) > after + 20)
        ok(api.state, url, "--overwrite")
    assert names_of(client) == sorted(made)


@pytest.mark.parametrize("when", mark_long(["before", "after"], "before"))
def test_an_api_server_that_is_killed_as_it_switches_has_either_store(
    api: ApiProcess, etcd: EtcdServer, when: str
) -> None:
    process = start_with(api, API_CUT_SHORT, when)
    client, url = api.connect(), etcd.url
    with writing(client) as made:
        done = run(api.state, url)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert recall_store(api.state) == ("sqlite" if when == "before" else url)
        assert (done.returncode == 0) is (when == "after"), done.stderr
        api.start()
        after = len(made)
        until(lambda: len(made) > after + 20)
    assert names_of(client) == sorted(made)


def start_with(api: ApiProcess, program: str, *words: str) -> subprocess.Popen[str]:
    """``api.start`` with another program."""
    argv = [sys.executable, "-c", program, *words, "api", "--state", str(api.state)]
    argv += ["--context", str(api.state / "context.json"), "--listen", f"127.0.0.1:{api.port}"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, text=True)
    api.processes.append(process)
    return process


def test_what_cannot_be_is_refused_and_changes_nothing(
    api: ApiProcess, etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not a server's state folder" in refused(tmp_path, "sqlite")
    process = api.start()
    client, url = api.connect(), etcd.url
    client.create(volume("a"))
    assert "already" in refused(api.state, "sqlite")
    assert "is not a store" in refused(api.state, "mysql://a")
    assert "one of URL" in refused(api.state)
    assert "one of URL" in refused(api.state, url, "--back")
    assert "--member goes with members" in refused(api.state, "members")
    assert "--pause is at most" in refused(api.state, url, "--pause", "5m")
    monkeypatch.setitem(EtcdRefill.__init__.__kwdefaults__, "timeout_seconds", 1.0)
    assert "check that etcd runs" in refused(api.state, "etcd://127.0.0.1:1")
    assert "needs" in (said := refused(api.state, "etcds://127.0.0.1:1")) and "ca.crt" in said
    assert read_exchange(api.state) is None

    with ApiProcess(tmp_path / "other", "--store", url) as other:  # another fabric's
        running = other.start()
        theirs = other.connect()
        theirs.create(volume("theirs"))
        assert "objects already" in refused(api.state, url)
        assert "stop every server that uses it" in refused(api.state, url, "--overwrite")
        assert names_of(theirs) == ["theirs"]
        running.terminate()
        running.wait()
        assert "objects already" in refused(api.state, url)
        ok(api.state, url, "--overwrite")
    process.kill()
    process.wait()
    assert "no server runs" in refused(api.state, "--back")
    assert names_of_restarted(api) == ["a"]


def names_of_restarted(api: ApiProcess) -> list[str]:
    api.start()
    client = api.connect()
    found = names_of(client)
    client.close()
    return found


def test_a_server_whose_new_store_is_lost_returns_to_the_one_before_as_it_was(
    api: ApiProcess, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = api.start()
    client = api.connect()
    client.create(volume("a"))
    ok(api.state, etcd.url)
    cursor = client.create(volume("b")) and client.list("volume").cursor
    etcd.end()
    process.kill()
    process.wait()
    assert "--back --as-it-was" in refused(api.state, "--back")
    assert "goes with --back" in refused(api.state, "--confirm", "--as-it-was")
    with monkeypatch.context() as brief:
        brief.setitem(EtcdRefill.__init__.__kwdefaults__, "timeout_seconds", 1.0)
        assert "what was written since is lost" in ok(api.state, "--back", "--as-it-was")
    assert names_of_restarted(api) == ["a"]
    with pytest.raises(CursorGone):
        list(client.watch("volume", cursor))
    etcd.start()
    ok(api.state, etcd.url, "--overwrite")
    client.create(volume("c"))
    for one in api.processes:
        one.kill()
        one.wait()
    ok(api.state, "--back", "--as-it-was")
    assert recall_store(api.state) == "sqlite" and names_of_restarted(api) == ["a"]


def test_a_way_back_that_fails_or_is_killed_may_be_taken_again(
    api: ApiProcess, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = api.start()
    client, url = api.connect(), etcd.url
    for there, words in ((url, ()), ("sqlite", ("--overwrite",))):
        client.create(volume(f"in-{there[:4]}"))
        ok(api.state, there, *words)
        for step in ("begin:after", "switch:before"):
            killed = run_program(CUT_SHORT, api.state, step, "0", "--back")
            assert killed.returncode == -signal.SIGKILL, killed.stderr
        with monkeypatch.context() as broken:
            broken.setattr(StoreCopy, "finish", fail)
            assert "the copy is not equal" in refused(api.state, "--back", *words)
        assert "is still kept" in refused(api.state, "etcd")
        if there == url:
            ok(api.state, "--confirm")
    process.kill()
    process.wait()
    assert "isn't as it was" in refused(api.state, "--back", "--as-it-was")
    assert names_of_restarted(api) == ["in-etcd", "in-sqli"]
    ok(api.state, "--back")
    assert recall_store(api.state) == url and names_of(api.connect()) == ["in-etcd", "in-sqli"]


async def fail(copy: StoreCopy) -> None:
    raise Unavailable("the copy is not equal to the original")


def test_an_etcd_that_was_left_is_never_taken_for_the_store_again(
    api: ApiProcess, etcd: EtcdServer, tmp_path: Path
) -> None:
    with EtcdServer(tmp_path / "other") as other:
        process = api.start()
        client, first, second = api.connect(), etcd.url, other.url
        client.create(volume("a"))
        for url in (first, second):
            ok(api.state, url)
            ok(api.state, "--confirm")
        process.kill()
        process.wait()
        started = run_program(START, api.state, "--store", first)
        assert started.returncode == 1 and "was left" in started.stderr, started.stderr
        assert recall_store(api.state) == second and names_of_restarted(api) == ["a"]


def test_a_full_etcd_and_a_second_command_are_refused(api: ApiProcess, tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "small", options=("--quota-backend-bytes", "2000000")) as small:
        api.start()
        client, url = api.connect(), small.url
        for n in range(60):  # twice what the quota lets in
            client.create({"kind": "secret", "name": f"s{n}", "spec": {"values": {"k": os.urandom(30_000).hex()}}})
        assert "has used up its quota" in refused(api.state, url)
        assert recall_store(api.state) == "sqlite" and read_exchange(api.state) is None
        client.create(volume("a"))
        small.send(signal.SIGSTOP)
        first = threading.Thread(target=run_program, args=(COMMAND, api.state, url))
        first.start()
        until(lambda: read_exchange(api.state) is not None)
        assert "runs for" in refused(api.state, "--confirm")
        small.send(signal.SIGCONT)
        first.join()

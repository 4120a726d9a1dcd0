"""``weft server backup`` and ``restore`` beside the real processes: taken while they work, put back while they rest."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest
from test_api_process import ApiProcess

from weft.backup.key import RepositoryKey
from weft.backup.repository import Repository
from weft.client import Client
from weft.contracts.clock import SystemClock
from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import Event, EventQueue, select
from weft.gateway.function_events.schedule_state import ScheduleState
from weft.objects.errors import CursorGone
from weft.store.remote import RemoteStore
from weft.store.sqlite import SqliteStore

PROGRAM = "import sys; from weft.launch.server.main import main; sys.exit(main(sys.argv[1:]))"


def server(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", PROGRAM, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def ok(*words: str | Path) -> str:
    done = server(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def end(api: ApiProcess) -> None:
    api.processes[-1].terminate()
    api.processes[-1].communicate(timeout=30)


def volume(name: str) -> dict[str, object]:
    return {"kind": "volume", "name": name, "spec": {"size": "1G"}}


def test_a_backup_amid_writers_is_put_back_here_and_on_a_new_machine(api: ApiProcess, tmp_path: Path) -> None:
    api.start()
    client = api.connect()
    made: list[str] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        own = Client(client.context, patience_seconds=60)
        n = 0
        while not stop.is_set():
            name = f"v{writer}-{n}"
            own.create(volume(name))
            made.append(name)
            n += 1
        own.close()

    writers = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for writer in writers:
        writer.start()
    while len(made) < 100:
        threading.Event().wait(0.01)
    before = list(made)
    said = ok("backup", tmp_path / "b", "--state", api.state)
    stop.set()
    for writer in writers:
        writer.join()
    assert "objects at revision" in said
    client.create(volume("after"))
    listed = client.list("volume")

    refused = server("restore", tmp_path / "b", "--state", api.state)
    assert refused.returncode == 1 and "in use by process" in refused.stderr
    end(api)
    ok("restore", tmp_path / "b", "--state", api.state)
    api.start()
    names = {v["name"] for v in client.list("volume").items}
    assert set(before) <= names <= set(made)
    with pytest.raises(CursorGone):
        list(client.watch("volume", listed.cursor))
    newest = int(listed.cursor.rpartition(":")[2])
    assert int(client.list("volume").cursor.rpartition(":")[2]) > newest
    client.create(volume("later"))

    # On a machine that has nothing but the file: the same authority and tokens, so nodes and people come in as before;
    # only the first administrator's context is made anew.
    token = client.create({"kind": "token", "name": "ci", "spec": {"use": "access", "role": "admin", "subject": "ci"}})[
        "secret"
    ]
    ok("backup", tmp_path / "b2", "--state", api.state)
    end(api)
    other = ApiProcess(tmp_path / "elsewhere")
    ok("restore", tmp_path / "b2", "--state", other.state)
    other.port = api.port
    api.processes.append(other.start())
    other.connect().close()
    client.context.token = token
    client.close()
    client = Client(client.context, patience_seconds=30)
    assert set(before) <= {v["name"] for v in client.list("volume").items} <= {*made, "later"}
    assert (other.state / "ca.key").read_bytes() == (api.state / "ca.key").read_bytes()
    client.close()


async def test_events_that_wait_are_in_a_backup_and_put_back_beside_those_that_came_later(
    api: ApiProcess, tmp_path: Path
) -> None:
    api.start()
    api.connect().close()
    file = EventFile(api.state / "gateway" / "events.db")  # as a gateway has it, which works on meanwhile
    await file.open()
    store = RemoteStore(api.state / "store.sock")
    queue, fired, key = EventQueue(file), ScheduleState(store, file, "g1"), ("uid", "entry")
    await fired.lead()
    begun = await fired.begin(key, 1.0)
    await queue.add([make_event(f"e{n}", b"\0\xff" * 1000) for n in range(300)])
    await queue.bury("e7", tries=3, at=9.0, error_type="KeyError", error="'n'")
    tick = await fired.fire(make_event("tick", b"{}"), key, 50.0, begun)
    assert (await asyncio.to_thread(server, "backup", tmp_path / "b", "--state", api.state)).returncode == 0
    await queue.add([make_event("later", b"{}")])
    await queue.again("e8", tries=2, due_at=60.0, error_type="E", error="x")
    await queue.done("e9")
    await fired.fire(make_event("tock", b"{}"), key, 110.0, tick)
    await store.close()
    await file.close()
    end(api)
    elsewhere = tmp_path / "elsewhere"
    for state in (api.state, elsewhere):
        await asyncio.to_thread(ok, "restore", tmp_path / "b", "--state", state)
    here, there = [await read_all(state) for state in (api.state, elsewhere)]
    assert set(there[0]) == {f"e{n}" for n in range(300)} and there[1] == here[1] == {"tick": 50.0}
    assert there[0]["e7"].dead_at == 9.0 and there[0]["e3"] == make_event("e3", b"\0\xff" * 1000)
    assert set(here[0]) == {*there[0], "later"}
    assert here[0]["e8"].tries == 2  # what is known here is newer
    assert stat.S_IMODE((elsewhere / "gateway" / "events.db").stat().st_mode) == 0o600


def make_event(id: str, payload: bytes) -> Event:
    return Event(id=id, project="default", name="thumb", payload=payload, accepted_at=5.0, due_at=5.0)


async def read_all(state: Path) -> tuple[dict[str, Event], dict[str, float]]:
    """The queue, and the schedules' events that aren't done, with the time that theirs was fired for."""
    file, store = EventFile(state / "gateway" / "events.db"), SqliteStore(state / "store.db")
    await file.open()
    await store.open()
    try:
        events, fired = await select(file, "1 = ?", (1,)), ScheduleState(store, file, "g2")
        await fired.lead()
        last = (await fired.known())["uid", "entry"].last
        return {event.id: event for event in events}, {event.id: last for event in await fired.take_over()}
    finally:
        await file.close()
        await store.close()


def test_a_server_at_rest_is_backed_up_too_and_a_damaged_file_changes_nothing(api: ApiProcess, tmp_path: Path) -> None:
    api.start()
    client = api.connect()
    client.create(volume("kept"))
    end(api)
    code = api.state / "images" / "code"
    code.mkdir()
    (code / sha256(b"def f(): ...").hexdigest()).write_bytes(b"def f(): ...")
    ok("backup", tmp_path / "b", "--state", api.state)
    refused = server("restore", tmp_path / "b", "--state", tmp_path / "new", "--store", "etcds://127.0.0.1:1")
    assert refused.returncode == 1 and not (tmp_path / "new").exists(), refused.stderr
    (tmp_path / "new" / "images" / "kept").mkdir(parents=True)
    refused = server("restore", tmp_path / "b", "--state", tmp_path / "new", "--store", "etcds://127.0.0.1:1")
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == ["images", "kept", "server.lock"], (
        refused.stderr
    )
    again = server("backup", tmp_path / "b", "--state", api.state)
    assert again.returncode == 5 and "exists already" in again.stderr
    damaged = bytearray((tmp_path / "b").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "bad").write_bytes(damaged)
    state = {path.name: path.read_bytes() for path in api.state.iterdir() if path.is_file()}
    for flag in ("--name", "--key-file"):  # of repositories
        refused = server("restore", tmp_path / "b", "--state", api.state, flag, "x")
        assert refused.returncode == 2 and f"{flag} is for a repository" in refused.stderr
    for name in ("bad", "none"):
        refused = server("restore", tmp_path / name, "--state", api.state)
        assert refused.returncode in (2, 3) and name in refused.stderr and "Traceback" not in refused.stderr
    assert {path.name: path.read_bytes() for path in api.state.iterdir() if path.is_file()} == state
    own = (api.state / "ca.key").read_bytes()
    (api.state / "ca.key").write_bytes(b"another server's")
    restored = server("restore", tmp_path / "b", "--state", api.state)
    assert "kept in" in restored.stderr and "as ca.key.replaced, store.db.replaced: remove it" in restored.stderr
    assert (api.state / "ca.key.replaced").read_bytes() == b"another server's"
    assert (api.state / "ca.key").read_bytes() == own
    nowhere = server("backup", tmp_path / "b2", "--state", tmp_path / "empty")
    assert (
        nowhere.returncode == 2
        and "is not a server's state folder" in nowhere.stderr
        and not (tmp_path / "empty").exists()
    )
    api.start()
    assert client.get("volume", "kept")["name"] == "kept"
    client.close()


def test_a_server_does_not_start_on_another_store_than_it_had(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "store.url").write_text("sqlite\n")
    refused = server("--state", tmp_path / "state", "--store", "etcd://127.0.0.1:1")
    assert refused.returncode == 5 and "keeps its objects in sqlite" in refused.stderr
    assert "weft server move-store" in refused.stderr


def test_a_backup_goes_into_a_repository_and_comes_back(api: ApiProcess, tmp_path: Path) -> None:
    place, key = tmp_path / "safe", tmp_path / "safe.key"
    place.mkdir()
    key.write_text("0f" * 32 + "\n")
    url = f"dir://{place}"
    Repository.create(
        url, RepositoryKey(bytes.fromhex("0f" * 32)), clock=SystemClock(), cache=tmp_path / "cache"
    ).close()
    api.start()
    client = api.connect()
    client.create(volume("first"))
    assert "stored as server-" in ok("backup", url, "--key-file", key, "--state", api.state)
    client.create(volume("second"))
    said = ok("backup", url, "--key-file", key, "--state", api.state, "--keep", "30d")
    newest = said.split("stored as ")[1].split(",")[0]
    assert b"first" not in b"".join(one.read_bytes() for one in place.rglob("*") if one.is_file())
    end(api)

    refused = server("restore", url, "--state", tmp_path / "new")
    assert refused.returncode == 2 and "whose key is needed" in refused.stderr
    refused = server("restore", url, "--key-file", key, "--name", "nothing", "--state", tmp_path / "new")
    assert refused.returncode != 0 and "it has: server-" in refused.stderr
    said = ok("restore", url, "--key-file", key, "--state", api.state)
    assert f"found {newest}" in said
    api.start()
    assert {one["name"] for one in client.list("volume").items} == {"first", "second"}

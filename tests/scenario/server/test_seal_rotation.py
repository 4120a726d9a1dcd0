"""The sealing key rotates at real servers, while people ask them without a pause: none of their requests fails, and whatever is
killed on the way, the rotation ends with one key, which opens all."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.store.etcd_server import PROGRAM
from tests.scenario.agent_lab import BUNDLE
from tests.scenario.cli_lab import FAKES, NODE
from tests.scenario.server.servers_lab import WEFT, Server, fabric_in, read_servers, tried
from tests.scenario.server.test_server_log import until
from tests.shelf import SHELF

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.client.context import read_context
from weft.objects.errors import Unavailable, WeftError

PASSWORD = "correct horse battery"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wr-", dir=SHELF) as name:  # sockets live in it: a short path
        yield Path(name)


class People:
    """Two who ask all the time, until the end: one logs in, whose password's hash is sealed, and one changes secrets."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self.asked, self.failed = 0, list[str]()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(work,)) for work in (self._log_in, self._change)]

    @staticmethod
    def prepare(client: Client) -> None:
        client.create({"kind": "user", "name": "ann", "spec": {}})
        raise_problem(client.http.request("POST", "/v1/users/ann:passwd", {"password": PASSWORD}))
        for number in range(40):
            client.create({"kind": "secret", "name": f"s{number}", "spec": {"values": {"a": f"of {number}"}}})

    def _log_in(self, client: Client, number: int) -> None:
        try:
            log_in(client)
        except Unavailable:  # its server was killed with the login, which isn't asked for twice by itself
            log_in(client)

    def _change(self, client: Client, number: int) -> None:
        found = client.get("secret", f"s{number % 40}")
        sealed = found["spec"]["sealed"]
        # As who edits it: what was read goes back, and one value is new.
        spec = {"values": {"b": str(number)}, "sealed": sealed}
        client.put({"kind": "secret", "name": found["name"], "spec": spec})

    def _ask(self, work: Callable[[Client, int], None]) -> None:
        client, number = self._connect(), 0
        while not self._over.wait(0.05):
            number += 1
            try:
                work(client, number)
                self.asked += 1
            except (WeftError, OSError) as problem:
                self.failed.append(f"{work.__name__}: {problem!r}")
        client.close()

    def __enter__(self) -> People:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def log_in(client: Client) -> None:
    answer = client.http.request("POST", "/v1/login", {"user": "ann", "password": PASSWORD})
    raise_problem(answer)
    token = answer.json()["token"]
    client.delete("token", token)


def read_rotation(client: Client) -> dict[str, Any]:
    answer = client.http.request("GET", "/v1/rotations")
    raise_problem(answer)
    return dict(answer.json()["items"][0])


def weft(context: Path, *words: str, code: int = 0) -> str:
    given = ["--context", str(context)] if words[0] != "server" else []  # those work on the machine itself
    done = subprocess.run([*WEFT, *words, *given], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stdout + done.stderr


def read_keys(state: Path) -> list[str]:
    return (state / "seal.key").read_text().split()


@contextmanager
def one_server(folder: Path) -> Iterator[tuple[Server, Path, Client]]:
    server = Server(folder / "s1", "--server", "s1", "--allow-fetch", str(folder))
    path = folder / "s1" / "context.json"
    try:
        context = until(lambda: tried(lambda: read_context(path)))
        client = server.connect(context)
        until(lambda: tried(lambda: read_servers(client)["s1"] == ("Ready", ["controllers"])))
        yield server, path, client
    finally:
        server.kill()


@contextmanager
def a_node(folder: Path, context: Path) -> Iterator[None]:
    """An agent whose guests pretend."""
    line = weft(context, "token", "create", "--join", "--node", "n1").split("\n")[0].split()
    state = ["--state", str(folder / "n1")]
    subprocess.run([*WEFT, *line[1:], *state], check=True, capture_output=True, timeout=60)
    words = [*WEFT, "agent", "n1", *state, "--run-dir", str(folder / "rn1"), *FAKES, *NODE]
    with (folder / "n1.log").open("wb") as log:
        agent = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        weft(context, "wait", "node/n1", "--for=phase=Ready", "--timeout", "60s")
        yield
    finally:
        agent.terminate()
        agent.wait(30)


@pytest.mark.long
def test_nobodys_request_fails_while_a_server_rotates_and_a_backup_of_before_opens(folder: Path) -> None:
    with one_server(folder) as (server, context, client):
        People.prepare(client)
        (folder / "tiny.tar").write_bytes(BUNDLE)
        with a_node(folder, context):
            weft(context, "image", "add", "tiny", str(folder / "tiny.tar"))
            weft(context, "vm", "create", "web", "--image", "tiny", "--memory", "64M")
            weft(context, "server", "backup", str(folder / "before"), "--state", str(server.state))
            (former,) = read_keys(server.state)
            with People(lambda: server.connect(read_context(context))) as people:
                said = weft(context, "fabric", "rotate", "seal")
                second = weft(context, "fabric", "rotate", "status")
                weft(context, "vm", "create", "other", "--image", "tiny", "--memory", "64M")
            assert not people.failed and people.asked > 100, (people.asked, people.failed[:3])
            assert "seal  rotated: key " in said and " done " in second
            (new,) = read_keys(server.state)
            assert new != former and read_rotation(client)["resealed"] >= 41
            phases = {one["name"]: one["status"]["phase"] for one in client.list("vm").items}
            assert phases == {"web": "Running", "other": "Running"}
            assert not [one for one in client.events(limit=200) if one["reason"] == "NodeNotReady"]
            doctor = json.loads(
                subprocess.run(
                    [*WEFT, "doctor", "-o", "json", "--context", str(context)], capture_output=True, text=True
                ).stdout
            )
            (finding,) = [one for one in doctor["items"] if one["subject"] == "key seal"]
            assert finding["state"] == "ok" and "rotated" in finding["fact"]
        server.kill()
        # The backup has the key of its time: whoever restores it has the passwords and secrets of its time.
        weft(context, "server", "restore", str(folder / "before"), "--state", str(server.state))
        assert read_keys(server.state) == [former]
        server.start()
        until(lambda: tried(lambda: read_rotation(client)["step"] == ""))
        log_in(client)
        read = client.get("secret", "s1")["spec"]
        client.put({"kind": "secret", "name": "s1", "spec": {"sealed": read["sealed"], "values": {"a": "of 1"}}})
        assert client.get("secret", "s1")["spec"]["sealed"] == read["sealed"]  # it was opened, and is the same value


def test_a_server_killed_at_each_step_goes_on_by_itself(folder: Path) -> None:
    with one_server(folder) as (server, _, client):
        People.prepare(client)
        (former,) = read_keys(server.state)
        raise_problem(client.http.request("POST", "/v1/rotations", {"part": "seal"}))
        killed: list[str] = []
        while (step := until(lambda: tried(lambda: read_rotation(client)))["step"]) != "done":
            if step not in killed:
                killed.append(step)
                server.kill()
                server.start()
        assert killed[0] == "spread" and "reseal" in killed, killed
        (new,) = read_keys(server.state)
        assert new != former and read_rotation(client)["unopened"] == []
        log_in(client)


@pytest.mark.long
@pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)")
def test_three_servers_rotate_while_one_is_away_and_the_leading_one_is_killed(folder: Path) -> None:
    with fabric_in(folder) as fabric:
        fabric.begin()
        fabric.join(2)
        fabric.join(3)
        client = fabric.client("s2")
        People.prepare(client)
        fabric.servers["s3"].kill()
        with People(fabric.follow) as people:
            raise_problem(client.http.request("POST", "/v1/rotations", {"part": "seal"}))
            until(lambda: tried(lambda: read_rotation(client)["waits_for"] == ["s3: it doesn't answer"]))
            assert len(read_keys(folder / "s2")) == 2
            fabric.servers["s3"].start()  # it has the former key only, and gets the new one from another
            until(lambda: tried(lambda: read_rotation(client)["step"] == "reseal"))
            fabric.servers["s1"].kill()
            fabric.servers["s1"].start()
            until(lambda: tried(lambda: read_rotation(client)["step"] == "done"), seconds=120)
        assert not people.failed and people.asked > 100, (people.asked, people.failed[:3])
        files = {tuple(read_keys(folder / name)) for name in ("s1", "s2", "s3")}
        assert len(files) == 1 and len(files.pop()) == 1
        for name in fabric.servers:
            until(lambda name=name: tried(lambda: log_in(fabric.client(name)) is None))  # type: ignore[misc]
        assert os.stat(folder / "s3" / "seal.key").st_mode & 0o777 == 0o600

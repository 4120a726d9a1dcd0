"""The API servers as the process they are, over the SQLite store: killed, ended, started twice."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from weft.client import Client, find_context
from weft.objects.errors import NotFound

COMMAND = "import sys; from weft.launch.server.main import main; sys.exit(main(sys.argv[1:]))"


def free_port() -> int:
    """One that the kernel gives nobody by itself, since the API servers take it only later, and leave it for a while."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class ApiProcess:
    """``before`` is Python that the process runs first."""

    def __init__(self, state: Path, *options: str, before: str = "") -> None:
        self.state = state
        self._command = f"{before}\n{COMMAND}"
        self.options = options
        self.port = free_port()
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *under: str) -> subprocess.Popen[str]:
        argv = ["api", "--state", str(self.state), "--context", str(self.state / "context.json")]
        argv += self.options
        argv += ["--listen", f"127.0.0.1:{self.port}", "--listen", f"127.0.0.2:{self.port}"]
        log = self.state.with_name(f"{self.state.name}-{len(self.processes)}.log")
        with (
            log.open("w") as stderr
        ):  # a file takes all that is logged; a pipe that nobody reads holds the API servers up when it is full
            process = subprocess.Popen([*under, sys.executable, "-c", self._command, *argv], stderr=stderr, text=True)
        process.stderr = log.open()
        self.processes.append(process)
        return process

    def __enter__(self) -> ApiProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def connect(self) -> Client:
        """A client of the started api, once they answer."""
        context = self.state / "context.json"
        while not context.exists():
            assert self.processes[-1].poll() is None, self.processes[-1].stderr
            threading.Event().wait(0.05)
        client = Client(find_context(str(context)), patience_seconds=30)
        client.http.request("GET", "/v1/healthz")
        return client


def told_by(process: subprocess.Popen[str]) -> str:
    """All that it said, once it has ended."""
    process.wait(20)
    assert process.stderr is not None
    return process.stderr.read()


def test_what_was_acknowledged_survives_a_kill_and_the_token_and_watch_go_on(api: ApiProcess) -> None:
    process = api.start()
    client = api.connect()
    client.create({"kind": "volume", "name": "a", "spec": {"size": "1G"}})
    events = client.watch_forever("volume")
    assert [event.type for event in (next(events), next(events))] == ["put", "synced"]
    process.kill()
    process.wait()
    api.start()
    client.create({"kind": "volume", "name": "b", "spec": {"size": "1G"}}, idempotency_key="k")
    assert [v["name"] for v in client.list("volume").items] == ["a", "b"]
    assert next(events).object["name"] == "b"
    client.close()


def test_the_api_servers_end_cleanly_when_asked_with_a_watch_open(api: ApiProcess) -> None:
    process = api.start()
    client = api.connect()
    events = client.watch("volume", client.list("volume").cursor)
    client.create({"kind": "volume", "name": "a", "spec": {"size": "1G"}})
    assert next(events).type == "put"
    process.send_signal(signal.SIGTERM)
    assert list(events) == []
    told = told_by(process)
    assert (process.returncode, "Traceback" in told) == (0, False)
    assert not (api.state / "store.sock").exists()
    client.close()


def test_a_second_start_on_the_same_port_or_state_says_so(api: ApiProcess) -> None:
    api.start()
    client = api.connect()
    again = api.start()
    told = told_by(again)
    assert again.returncode == 1 and "can't listen at 127.0.0.1" in told and "Traceback" not in told
    api.port += 1 if api.port < 65535 else -1
    third = api.start()
    told = told_by(third)
    assert third.returncode == 1 and "Traceback" not in told and told.strip()
    with pytest.raises(NotFound):
        client.get("vm", "web")  # the first one goes on
    client.close()


def test_every_address_it_listens_on_is_in_its_certificate(api: ApiProcess) -> None:
    api.start()
    client = api.connect()
    for host in ("127.0.0.1", "127.0.0.2"):
        client.context.server = f"https://{host}:{api.port}"
        other = Client(client.context)
        assert other.get("project", "default")["name"] == "default"
        other.close()
    client.close()


def test_a_server_told_of_a_strategy_that_is_none_says_so_and_does_not_begin(tmp_path: Path) -> None:
    command = "import sys; from weft.launch.server.main import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", command, "--state", str(tmp_path / "s")],
        env={**os.environ, "SCHEDULING_STRATEGY": "best_fti"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 2
    assert "SCHEDULING_STRATEGY: 'best_fti' is not a placement strategy; did you mean best_fit?" in ended.stderr


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with (state / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = [
            sys.executable,
            "-c",
            "import sys; from weft.launch.server.main import main; sys.exit(main(sys.argv[1:]))",
        ]
        done = subprocess.run([*argv, "--state", str(state)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 5
    assert "another server" in done.stderr

"""A real VictoriaMetrics, kept as ``weft server`` keeps it, and a real Prometheus; samples go there as weft sends them."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.scenario.server.test_api_process import free_port

from weft.contracts.clock import SystemClock
from weft.launch.process.supervisor import Supervisor, supervising
from weft.launch.server.metrics import plan_database
from weft.objects.errors import WeftError
from weft.telemetry.metrics.database import Database, find_database
from weft.telemetry.metrics.sample import Sample
from weft.telemetry.metrics.sender import Sender, split_samples

DAY = 86_400.0


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.03)


class OwnDatabase:
    """The server's own VictoriaMetrics under the server's own supervisor, in a loop that ``run`` turns."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.runner = asyncio.Runner()
        self.clock = SystemClock()
        self.supervisor = Supervisor("metrics", lambda: plan_database(state, DAY, self.clock), self.clock)
        self.keeping = supervising([self.supervisor])
        self.runner.run(self.keeping.__aenter__())
        self.await_health()

    def find(self) -> Database:
        return find_database(self.state, None)

    def await_health(self) -> None:
        """Turn the loop until it answers."""

        def answers() -> bool:
            self.turn()
            try:
                return fetch(self.find(), "/health").strip() == b"OK"
            except (OSError, WeftError):
                return False

        until(answers)

    def turn(self, seconds: float = 0.05) -> None:
        self.runner.run(asyncio.sleep(seconds))

    @property
    def pid(self) -> int:
        process = self.supervisor._process
        assert process is not None
        return process.pid

    def send(self, samples: Sequence[Sample], find: Callable[[], Database] | None = None) -> int:
        """Send them as the controllers do, and let queries see them; how many were dropped."""
        sender = Sender(find or self.find, self.clock)

        async def deliver() -> None:
            sender.put(split_samples(samples))
            sending = asyncio.create_task(sender.run())
            while sender.kept:
                await asyncio.sleep(0.01)
            sending.cancel()

        self.runner.run(deliver())
        fetch(self.find(), "/internal/force_flush")
        return sender.dropped

    def close(self) -> None:
        self.runner.run(self.keeping.__aexit__(None, None, None))
        self.runner.close()


def fetch(database: Database, path: str, body: bytes | None = None) -> bytes:
    """Ask the database directly."""
    headers = {"Authorization": database.authorization} if database.authorization else {}
    trust = ssl.create_default_context(cadata=database.ca) if database.ca else None
    if trust is not None:
        trust.check_hostname = False  # the name is the database's, not the host's
    request = urllib.request.Request(database.url + path, body, headers)
    with urllib.request.urlopen(request, timeout=20, context=trust) as answer:
        return bytes(answer.read())


@contextmanager
def run_prometheus(folder: Path, port: int | None = None) -> Iterator[Database]:
    """A Prometheus that scrapes nothing and takes remote writes."""
    port = port or free_port()
    (folder / "prometheus.yml").write_text("scrape_configs: []\n")
    argv = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver", "--log.level=error"]
    process = subprocess.Popen(argv)
    database = Database("prometheus", f"http://127.0.0.1:{port}")

    def is_ready() -> bool:
        assert process.poll() is None
        try:
            return b"Ready" in fetch(database, "/-/ready")
        except OSError:
            return False

    try:
        until(is_ready)
        yield database
    finally:
        process.kill()
        process.wait()

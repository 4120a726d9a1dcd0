"""Bad days of the database for metrics: away, killed, full, started twice; and of the server that keeps it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest
from tests.scenario.metrics_lab import OwnDatabase, fetch, run_prometheus, until
from tests.scenario.server.test_api_process import free_port

from weft.contracts.clock import SystemClock
from weft.drivers.linux.processes import read_arguments
from weft.launch.process.supervisor import Supervisor, supervising
from weft.launch.server.metrics import plan_database
from weft.objects.errors import WeftError
from weft.telemetry.metrics.database import Database, find_database
from weft.telemetry.metrics.sample import Sample
from weft.telemetry.metrics.sender import Sender, split_samples


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnDatabase]:
    made = OwnDatabase(tmp_path / "server")
    yield made
    made.close()


def value(database: Database, query: str) -> float | None:
    """Of the first series in the answer."""
    form = urlencode({"query": query, "time": f"{time.time():.3f}", "nocache": 1}).encode()
    found = json.loads(fetch(database, "/api/v1/query", form))["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def test_killed_it_comes_back_with_what_it_had_and_another_password(own: OwnDatabase) -> None:
    before = own.find()
    own.send([Sample("weft_node_up", (("node", "n1"),), int(time.time() * 1000), 1.0)])
    for number in (signal.SIGTERM, signal.SIGKILL):  # ended, it writes what it has; killed, it loses the last seconds
        pid = own.pid
        os.kill(pid, number)
        until(lambda pid=pid: own.turn() or own.pid != pid)
        own.await_health()
    assert value(own.find(), "weft_node_up") == 1
    assert own.find().authorization != before.authorization
    argv = read_arguments(own.pid)
    assert not any(own.find().authorization.split()[1] in word or "assword" in word for word in argv)


def test_its_pages_about_itself_are_for_nobody(own: OwnDatabase) -> None:
    for page in ("/metrics", "/flags", "/debug/pprof/heap", "/debug/pprof/cmdline"):
        for database in (own.find(), msgspec.structs.replace(own.find(), authorization="")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                fetch(database, page)
            assert refused.value.code == 401


def test_a_second_one_on_the_same_folder_never_runs(own: OwnDatabase) -> None:
    """As after a supervisor that was killed while its child goes on."""
    at = own.find()
    second = plan_database(own.state, 86_400.0, own.clock)
    done = subprocess.run(second.argv, env=second.environ, capture_output=True, timeout=20, check=False)
    assert done.returncode != 0 and b"lock" in done.stderr
    assert fetch(at, "/health").strip() == b"OK"


def test_it_ends_with_its_supervisor_however_that_ends(tmp_path: Path) -> None:
    """``weft server`` killed -9, with all it keeps; and the next one takes the same folder."""
    argv = [sys.executable, "-m", "weft", "server"]
    state, ports = tmp_path / "server", [free_port() for _ in range(3)]
    words = [f"--{name}=127.0.0.1:{port}" for name, port in zip(("listen", "gateway", "functions"), ports, strict=True)]
    program = "import sys; from weft.launch.entry import main; sys.argv[0] = sys.argv.pop(1); main()"
    weft = str(Path(sys.executable).with_name("weft"))
    argv = [sys.executable, "-c", program, weft, "server", "--state", str(state), *words]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            assert process.poll() is None
            try:
                return fetch(find_database(state, None), "/health").strip() == b"OK"
            except (OSError, WeftError):
                return False

        until(answers, 30)
        return process

    def children() -> list[int]:
        return [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit()
            and any(word == f"-storageDataPath={state}/metrics/data" for word in read_arguments(int(name)))
        ]

    server = start()
    (first,) = children()
    server.kill()
    server.wait()
    until(lambda: first not in children())
    (state / "metrics" / "database.json").unlink()
    server = start()
    assert len(children()) == 1
    server.send_signal(signal.SIGTERM)
    server.wait(30)
    assert children() == []


def test_a_plan_that_fails_is_tried_again(tmp_path: Path) -> None:
    """A full disk, a program that is being replaced: the supervisor goes on."""
    tries: list[int] = []

    def plan() -> object:
        tries.append(1)
        raise OSError("no space left on device")

    async def keep() -> None:
        async with supervising([Supervisor("metrics", plan, SystemClock())]):  # type: ignore[arg-type]
            async with asyncio.timeout(20):
                while len(tries) < 2:
                    await asyncio.sleep(0.02)

    asyncio.run(keep())


def test_away_for_a_day_what_is_kept_becomes_thin_and_the_gap_is_told(tmp_path: Path, own: OwnDatabase) -> None:
    port = free_port()
    away = Database("prometheus", f"http://127.0.0.1:{port}")
    sender = Sender(lambda: away, own.clock, most_kept=200)
    now = int(time.time() * 1000)

    async def go() -> None:
        sending = asyncio.create_task(sender.run())
        for n in range(100):  # 1,000 samples
            at = now - (100 - n) * 10_000
            sender.put(
                split_samples([Sample("weft_node_up", (("node", f"n{node}"),), at, float(n)) for node in range(10)])
            )
        await asyncio.sleep(0.1)
        kept, dropped = sender.kept, sender.dropped
        assert 100 <= kept <= 200 and dropped == 1000 - kept
        with run_prometheus(tmp_path, port):
            async with asyncio.timeout(30):
                while sender.kept:
                    await asyncio.sleep(0.05)
            assert value(away, "weft_metrics_dropped_samples_total") == dropped
            assert 800 <= value(away, "weft_metrics_gap_seconds") <= 990
            assert value(away, "count_over_time(weft_node_up{node='n3'}[1h])") == kept / 10
            oldest = value(away, "min_over_time(weft_node_up{node='n3'}[1h])")
            assert oldest < 10 and value(away, "max_over_time(weft_node_up{node='n3'}[1h])") == 99
        sending.cancel()

    own.runner.run(go())


def test_a_password_that_is_refused_loses_nothing(own: OwnDatabase) -> None:
    good = own.find()
    wrong = Database("victoriametrics", good.url, "Basic d3Jvbmc6b25l")
    asked = [wrong]
    sender = Sender(lambda: asked[0], own.clock)

    async def go() -> None:
        sender.put(split_samples([Sample("weft_node_up", (("node", "late"),), int(time.time() * 1000), 1.0)]))
        sending = asyncio.create_task(sender.run())
        await asyncio.sleep(0.3)
        assert sender.kept == 1
        asked[0] = good
        async with asyncio.timeout(20):
            while sender.kept:
                await asyncio.sleep(0.05)
        sending.cancel()

    own.runner.run(go())
    fetch(good, "/internal/force_flush")
    assert sender.dropped == 0 and value(good, "weft_node_up{node='late'}") == 1


def test_on_a_full_disk_samples_wait_and_queries_go_on(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160M", "none", place], check=True)
    try:
        own = OwnDatabase(place / "server")
        try:
            own.send([Sample("weft_node_up", (("node", "n1"),), int(time.time() * 1000), 1.0)])
            ballast = place / "ballast"
            ballast.write_bytes(bytes(90 << 20))  # less than the database leaves free
            sender = Sender(own.find, own.clock)

            async def go() -> None:
                sending = asyncio.create_task(sender.run())
                async with asyncio.timeout(30):  # it looks at the disk once in a while
                    while not sender.kept:
                        sender.put(
                            split_samples([Sample("weft_node_up", (("node", "n2"),), int(time.time() * 1000), 1.0)])
                        )
                        await asyncio.sleep(0.3)
                assert value(own.find(), "weft_node_up{node='n1'}") == 1
                ballast.unlink()
                async with asyncio.timeout(60):
                    while sender.kept:
                        await asyncio.sleep(0.1)
                sending.cancel()

            own.runner.run(go())
            assert sender.dropped == 0
        finally:
            own.close()
    finally:
        subprocess.run(["umount", place], check=True)

"""Does it cost a migration anything that its guest is watched? In one run, in turn: nobody looks, somebody watches the guest and
scrapes all nodes, or watches another guest and scrapes as much: then only the machine is as busy."""

from __future__ import annotations

import http.client
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tests.cluster.cluster import WEFT, Cluster, lay_out

from benchmarks.measurement import Figure, spread
from benchmarks.soak.travellers import Kind, Traveller, build_programs

NAME = "watched"
EVERY_SECONDS = 0.2
MOST_RATIO = 1.15  # of the time; two cores do all of the work, so some of it is the clients'
BANDWIDTH = "40M"  # a limit, so that the time is the migration's and not the machine's


def compare_watched(moves: int) -> list[Figure]:
    """In a cluster of its own: a guest that writes half of its memory moves so many times each way, over a limited path."""
    folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    cluster = lay_out(folder)
    ended: dict[str, list[dict[str, float]]] = {"": [], "hello": [], NAME: []}
    try:
        cluster.up()
        guest = Traveller(cluster, Kind(NAME, "tiny", 160, 1, "c"), build_programs(folder))
        guest.create()
        for number in range(len(ended) * moves + 1):
            guest.settle()
            watched = list(ended)[number % len(ended)]
            with watching(cluster, watched) if watched else nullcontext():
                cluster.ok(*("vm", "migrate", guest.name, "--timeout", "120s", "--bandwidth", BANDWIDTH), timeout=180)
            guest.owe_rounds()
            (newest,) = [one for one in _read_ended(cluster) if one["number"] == number]
            print(f"  {watched or 'nobody looks'}: {newest}", flush=True)
            if number:  # the first one doesn't know the path yet
                ended[watched].append(newest)
        guest.settle()
        guest.delete()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    return [
        _compare("time", ended, "seconds", "s", 1, MOST_RATIO),
        _compare("pause", ended, "pause", "ms", 1000, None),
    ]


def _compare(
    what: str, ended: dict[str, list[dict[str, float]]], name: str, unit: str, scale: int, most: float | None
) -> Figure:
    alone, busy, watched = ([one[name] for one in found] for found in ended.values())
    ratio, as_busy = (statistics.median(watched) / max(1e-9, statistics.median(peer)) for peer in (alone, busy))
    told = [spread(values, unit, scale, 0 if scale > 1 else 2) for values in (alone, busy, watched)]
    return Figure(
        f"{what} of a move while `weft vm metrics --watch` shows the guest at 0.2 s and all nodes are scraped as often",
        told[2],
        f"nobody looks {told[0]}; another guest is watched {told[1]}",
        f"{ratio:.2f}; {as_busy:.2f}",
        goal=f"≤ {most} of nobody looks" if most else "–",
        kept=ratio <= most if most else None,
    )


def _read_ended(cluster: Cluster) -> list[dict[str, float]]:
    """What moves cost, in their order."""
    items = sorted(cluster.json("migration", "list")["items"], key=lambda item: item["created_at"])
    actual = [item["status"]["actual"] for item in items if item["status"].get("actual")]
    return [
        {"number": number, "seconds": one["duration_seconds"], "pause": one["pause_ms"] / 1000}
        for number, one in enumerate(actual)
    ]


@contextmanager
def watching(cluster: Cluster, name: str) -> Iterator[None]:
    """Somebody watches the guest, and something scrapes each node, five times a second."""
    ended, answers = threading.Event(), list[int]()
    words = [WEFT, "vm", "metrics", name, "--watch", "--granularity", "0.2s", "-o", "json"]
    watcher = subprocess.Popen(words, cwd=cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    sockets = sorted(Path(f"/run/weft-{cluster.run_mark()}").glob("*/agent.sock"))
    scrapers = [threading.Thread(target=_scrape, args=(path, ended, answers)) for path in sockets]
    try:
        assert watcher.stdout is not None
        assert watcher.stdout.readline(), "it shows nothing"
        draining = threading.Thread(target=watcher.stdout.read)
        draining.start()
        for scraper in scrapers:
            scraper.start()
        yield
    finally:
        ended.set()
        watcher.terminate()
        watcher.wait()
        for scraper in scrapers:
            scraper.join()
    assert len(answers) >= len(sockets) > 0 and set(answers) == {200}, answers[:5]


def _scrape(path: Path, ended: threading.Event, answers: list[int]) -> None:
    while not ended.wait(EVERY_SECONDS):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        answer.read()
        answers.append(answer.status)
        connection.close()

"""Who asks a guest that moves, over one connection and over new ones: what do they notice?"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.cluster.cluster import lay_out

from benchmarks.measurement import Figure, spread
from benchmarks.soak.callers import LATE_SECONDS, Tally
from benchmarks.soak.travellers import Kind, Traveller, build_programs


def ask(moves: int) -> list[Figure]:
    """In a cluster of its own, of three nodes: a guest that writes half of its memory and answers at a published port."""
    folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    cluster = lay_out(folder)
    tally, waits, pauses = Tally(), list[float](), list[float]()
    try:
        cluster.up()
        guest = Traveller(cluster, Kind("asked", "tiny", 160, 1, "c"), build_programs(folder))
        guest.create()
        for _ in range(moves):
            guest.settle()
            guest.caller.take()
            cluster.ok("vm", "migrate", guest.name, "--timeout", "120s", timeout=180)
            guest.owe_rounds()
            counted = guest.caller.take()
            tally = tally.plus(counted)
            waits.append(counted.longest)
        guest.settle()
        ended = [item["status"] for item in cluster.json("migration", "list")["items"]]
        pauses = [status["actual"]["pause_ms"] / 1000 for status in ended if status.get("actual")]
        guest.delete()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    failed = tally.lost + tally.reset
    return [
        Figure(
            f"requests that failed while a guest moved {moves} times in a cluster of three nodes",
            f"{failed} of {tally.asked}; {tally.late} later than {LATE_SECONDS:.0f} s",
            goal="0",
            kept=not failed,
        ),
        Figure("… the longest wait for an answer in each move", spread(waits), f"pauses {spread(pauses)}"),
    ]

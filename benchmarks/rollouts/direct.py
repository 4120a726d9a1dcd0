"""How many requests a second guests answer without weft between: ``find_capacity`` asks each from its own node's router, all at
once. ``python -m benchmarks.rollouts.direct SECONDS PATHS HOST:PORT …`` is what it runs there: a few clients for each place, each
with one request after another over new connections; prints how many were answered and how many failed."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.cluster.cluster import Cluster
from tests.cluster.load import ROOT

from weft.objects.identity import short_id

CLIENTS, WARM_SECONDS, SECONDS = 4, 3.0, 10.0


def find_capacity(cluster: Cluster, label: str, port: int, paths: Sequence[str]) -> float:
    """Requests a second that the VMs with the label ``app=LABEL`` answer altogether."""
    places: dict[str, list[str]] = {}
    for vm in cluster.json("get", "vms", "-o", "json")["items"]:
        if vm["labels"].get("app") == label:
            places.setdefault(vm["status"]["node"], []).append(f"{vm['status']['address']}:{port}")
    segment, asking = short_id(cluster.object("network", "default")["uid"]), []
    for node, found in places.items():
        init = json.loads((cluster.state / "run" / f"init-{node}.pid").read_bytes())["pid"]
        inside = ["nsenter", "-t", str(init), "-n", "-m"]
        listed = subprocess.run([*inside, "ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        (router,) = [name for line in listed.splitlines() if (name := line.split()[0]).endswith(f"n{segment}")]
        ask = [
            "env",
            f"PYTHONPATH={ROOT}",
            sys.executable,
            "-m",
            "benchmarks.rollouts.direct",
            str(SECONDS),
            ",".join(paths),
            *found,
        ]
        asking.append(
            subprocess.Popen(
                [*inside, "ip", "netns", "exec", router, *ask], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
        )
    answers = [one.communicate(timeout=120)[0].split() for one in asking]
    print(f"  the guests alone: {answers}", flush=True)
    return sum(int(answered) for answered, _ in answers) / SECONDS


async def ask_all(seconds: float, paths: Sequence[str], places: Sequence[str]) -> tuple[int, int]:
    counts, begin = [0, 0], time.monotonic() + WARM_SECONDS
    end = begin + seconds

    async def keep(place: str, first: int) -> None:
        host, _, port = place.partition(":")
        for path in itertools.islice(itertools.cycle(paths), first, None):
            if time.monotonic() > end:
                return
            answer = b""
            try:
                async with asyncio.timeout(10):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                    answer = await reader.read(-1)
                    writer.close()
            except OSError:
                await asyncio.sleep(0.05)
            if begin <= time.monotonic() <= end:
                counts[b" 200 " not in answer[:16]] += 1

    await asyncio.gather(*(keep(place, 7 * at) for at, place in enumerate(list(places) * CLIENTS)))
    return counts[0], counts[1]


if __name__ == "__main__":
    print(*asyncio.run(ask_all(float(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:])))

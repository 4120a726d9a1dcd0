"""How many requests a second guests answer without weft between: each is asked from its own node's router, all at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from tests.cluster.cluster import Cluster
from tests.cluster.load import ROOT

from weft.objects.identity import short_id

SECONDS = 10.0


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
            "benchmarks.rollouts.ask",
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

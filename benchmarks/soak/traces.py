"""What guests leave on a node of a local cluster (files, sockets, links, rules, namespaces, processes, mounts, control groups, loop
devices), and what weft's own processes hold: looked at from outside, not asked of weft."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.cluster import Cluster

from weft.objects.identity import short_id

NODES = ("n1", "n2", "n3")
PROCESSES = {
    "api": "weft server api",
    "controllers": "weft server controllers",
    "gateway": "weft server gateway",
    **{f"agent {node}": f"weft agent {node} " for node in NODES},
}
_KEPT = {
    "images",
    "history",
    "departures",
    "flows",
    "traces",
}  # of a node's folder: what outlives its guests, and is bounded


def collect_marks(allocation: dict[str, Any]) -> set[str]:
    """What the names of all that this guest has on a node are made of."""
    spec = allocation["spec"]
    uids = [allocation["uid"], *(part["uid"] for part in [*spec["nics"], *spec["volumes"]])]
    return {short_id(uid) for uid in uids}


def list_things(cluster: Cluster, node: str) -> set[str]:
    """All files of the node that belong to guests, its sockets, links, namespaces and rules: one line each."""
    topology = json.loads((cluster.state / "cluster.json").read_bytes())
    things: set[str] = set()
    for folder in (cluster.state / "nodes" / node, Path(f"/run/weft-{topology['id']}", node)):
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            if inside.parts[0] not in _KEPT and (len(inside.parts) > 1 or not path.is_dir()):  # its rooms are made once
                things.add(f"{folder.name}:{inside}")
    for told in _inside(cluster, node, "ip", "-j", "link", "show", as_json=True):
        things.add(f"link {told['ifname']}")
    things |= {f"namespace {line.split()[0]}" for line in _inside(cluster, node, "ip", "netns", "list").splitlines()}
    rules = re.sub(r"elements = \{([^}]*)\}", _one_line_each, _inside(cluster, node, "nft", "list", "ruleset"))
    things |= {f"rule {line.strip()}" for line in rules.splitlines() if "comment" not in line and line.strip(" \t}")}
    return things


def list_running(cluster: Cluster, node: str) -> set[str]:
    """What only what runs has on a node: processes under its init but weft's own, mounts, control groups, loop devices."""
    init = _find_init(cluster, node)
    running = list_processes(cluster, node).values()
    things = {f"process {words[:120]}" for words in running if f"weft agent {node} " not in words}
    for pid in {init, *cluster.pids(f"weft agent {node} ")}:
        mounts = {line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
        things |= {f"mount {at}" for at in mounts if at.startswith((str(cluster.state), "/run/"))}
    topology = json.loads((cluster.state / "cluster.json").read_bytes())
    mark = f"/weft/{topology['id']}/{node}/"
    for folder, _, _ in os.walk("/sys/fs/cgroup"):  # others' groups come and go meanwhile
        if mark in folder:
            things.add(f"cgroup {folder.partition(mark)[2]}")
    listed = subprocess.run(["losetup", "-l", "-n", "-O", "NAME,BACK-FILE"], capture_output=True, text=True).stdout
    things |= {f"loop {line}" for line in listed.splitlines() if f"{cluster.state}/nodes/{node}/" in line}
    return things


def list_processes(cluster: Cluster, node: str) -> dict[int, str]:
    """Command lines of all that runs under the node's init, by pid."""
    below: dict[int, list[int]] = {}
    words: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has just ended
            continue
        below.setdefault(parent, []).append(int(entry.name))
        words[int(entry.name)] = line
    within = list(below.get(_find_init(cluster, node), []))
    for pid in within:
        within += below.get(pid, [])
    return {pid: words[pid] for pid in within if words.get(pid)}


def _find_init(cluster: Cluster, node: str) -> int:
    return int(json.loads((cluster.state / "run" / f"init-{node}.pid").read_bytes())["pid"])


def _one_line_each(found: re.Match[str]) -> str:
    return "\n".join(f"element {part.strip()}" for part in found[1].split(","))


def _inside(cluster: Cluster, node: str, *words: str, as_json: bool = False) -> Any:
    done = subprocess.run(
        ["nsenter", "-t", str(_find_init(cluster, node)), "-n", "-m", *words],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(done) if as_json else done


class Holding(NamedTuple):
    pid: int
    files: int
    memory_bytes: int


def weigh(cluster: Cluster) -> dict[str, Holding]:
    """Open files and resident memory of weft's processes, by what they are."""
    found = {}
    for name, words in PROCESSES.items():
        for pid in cluster.pids(words):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                files = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:  # it has just ended
                continue
            resident = re.search(r"VmRSS:\s+(\d+)", status)
            if resident is not None:
                found[name] = Holding(pid, files, int(resident[1]) * 1024)
    return found


class Growth(NamedTuple):
    """Of one process from when it was warm to the end: medians of the first and the last looks."""

    name: str
    looks: int
    before_bytes: int
    after_bytes: int


class Census:
    """What each process held at each look. One that was started again begins anew."""

    WARM, AT_ONCE = 4, 5  # looks

    def __init__(self) -> None:
        self._looks: dict[tuple[str, int], list[Holding]] = {}

    def look(self, cluster: Cluster) -> dict[str, Holding]:
        seen = weigh(cluster)
        for name, holding in seen.items():
            self._looks.setdefault((name, holding.pid), []).append(holding)
        return seen

    def grown(self) -> list[Growth]:
        """The longest-lived process of each name that was looked at often enough."""
        longest: dict[str, list[Holding]] = {}
        for (name, _), looks in self._looks.items():
            if len(looks) >= self.WARM + 2 and len(looks) > len(longest.get(name, [])):
                longest[name] = looks
        return [Growth(name, len(looks), *self._ends(looks)) for name, looks in sorted(longest.items())]

    def _ends(self, looks: list[Holding]) -> tuple[int, int]:
        memory = [look.memory_bytes for look in looks[self.WARM :]]
        first, last = memory[: self.AT_ONCE], memory[-self.AT_ONCE :]
        return round(statistics.median(first)), round(statistics.median(last))

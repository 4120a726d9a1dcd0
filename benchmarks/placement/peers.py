"""What weft's engine is compared with: a bare heap for each class, nova's loop, ganeti's hail."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from pathlib import Path

from benchmarks.measurement import ROOT
from weft.contracts.policy import Request
from weft.scheduler.table.snapshot import Snapshot

NOVA = ROOT / ".weft" / "nova"
LOOP = Path(__file__).with_name("nova_loop.py")


def run_bare_heaps(snapshot: Snapshot, classes: Sequence[Request], turns: Sequence[int]) -> float:
    """CPU seconds of the same decisions by the least that could make them: a heap of (score, node) for each class, entries
    looked at again when they come up; room alone is checked, and nothing is noted but what is left."""
    capacity = snapshot.capacity.tolist()
    cpu, memory, disk = (list(row) for row in capacity)
    per_cpu, per_memory, per_disk = (
        [weight / amount for amount in row] for weight, row in zip((0.4, 0.4, 0.2), capacity, strict=True)
    )
    heaps = []
    for request in classes:
        a, b, c = request.amounts
        heap = [
            (-((cpu[i] - a) * per_cpu[i] + (memory[i] - b) * per_memory[i] + (disk[i] - c) * per_disk[i]), i)
            for i in range(len(cpu))
        ]
        heapify(heap)
        heaps.append((heap, a, b, c))
    begun = time.process_time()
    for turn in turns:
        heap, a, b, c = heaps[turn]
        while heap:
            key, i = heap[0]
            x, y, z = cpu[i] - a, memory[i] - b, disk[i] - c
            if x < 0 or y < 0 or z < 0:
                heappop(heap)
                continue
            now = -(x * per_cpu[i] + y * per_memory[i] + z * per_disk[i])
            if now == key:
                cpu[i], memory[i], disk[i] = x, y, z
                break
            heapreplace(heap, (now, i))
    return time.process_time() - begun


def provide_nova() -> str:
    """Why nova can't be had; empty if it is there."""
    python = NOVA / "bin" / "python"
    if python.exists() and not subprocess.run([python, "-c", "import nova"], capture_output=True).returncode:
        return ""
    subprocess.run([sys.executable, "-m", "venv", NOVA], check=True)
    done = subprocess.run([NOVA / "bin" / "pip", "install", "-q", "nova"], capture_output=True, text=True)
    return f"pip install nova: {done.stderr.strip()[-200:]}" if done.returncode else ""


def run_nova(hosts: int, seconds: float) -> float:
    """CPU seconds that nova's loop takes for one request."""
    words = [NOVA / "bin" / "python", LOOP, str(hosts), str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nova: {done.stderr[-600:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return float(found["seconds"]) / int(found["decided"])


def find_hail() -> str | None:
    return shutil.which("hail", path="/usr/lib/ganeti/iallocators:/usr/bin")


def make_hail_request(path: Path, nodes: int, vms: int) -> None:
    """The input of one allocation request to hail, as ganeti writes it: a cluster with instances, and one more wished for."""
    draw = random.Random(3)
    where = [draw.randrange(nodes) for _ in range(vms)]
    held = [where.count(number) for number in range(nodes)]
    cluster = {
        "version": 2,
        "cluster_name": "bench",
        "cluster_tags": [],
        "enabled_hypervisors": ["kvm"],
        "ipolicy": _POLICY,
        "nodegroups": {
            "g": {"name": "default", "alloc_policy": "preferred", "ipolicy": _POLICY, "networks": [], "tags": []}
        },
        "nodes": {
            f"n{number:04}": {
                "total_memory": 262144,
                "reserved_memory": 1024,
                "free_memory": 261120 - 2048 * held[number],
                "total_disk": 4096000,
                "free_disk": 4096000 - 20480 * held[number],
                "total_cpus": 64,
                "reserved_cpus": 0,
                "group": "g",
                "offline": False,
                "drained": False,
                "master_candidate": True,
                "master_capable": True,
                "vm_capable": True,
                "primary_ip": f"10.0.{number // 250}.{number % 250 + 1}",
                "secondary_ip": f"10.1.{number // 250}.{number % 250 + 1}",
                "tags": [],
                "i_pri_memory": 2048 * held[number],
                "i_pri_up_memory": 2048 * held[number],
                "free_spindles": 0,
                "total_spindles": 0,
                "ndparams": {"spindle_count": 1, "exclusive_storage": False},
                "hv_state": {},
                "disk_state": {},
            }
            for number in range(nodes)
        },
        "instances": {
            f"vm{number:05}": {
                "memory": 2048,
                "vcpus": 1,
                "disk_space_total": 20480,
                "disk_template": "plain",
                "disks": [{"size": 20480, "mode": "rw", "spindles": 0}],
                "nodes": [f"n{at:04}"],
                "nics": [],
                "tags": [],
                "admin_state": "up",
                "should_run": True,
                "auto_balance": True,
                "spindle_use": 1,
                "hypervisor": "kvm",
                "os": "any",
                "forthcoming": False,
            }
            for number, at in enumerate(where)
        },
        "request": {
            "type": "allocate",
            "name": "wished",
            "memory": 4096,
            "vcpus": 2,
            "spindle_use": 1,
            "disk_space_total": 20480,
            "disk_template": "plain",
            "disks": [{"size": 20480, "mode": "rw", "spindles": 0}],
            "required_nodes": 1,
            "nics": [],
            "tags": [],
            "os": "any",
            "hypervisor": "kvm",
            "group_name": None,
        },
    }
    path.write_text(json.dumps(cluster))


_SPEC = {"memory-size": 4096, "cpu-count": 2, "disk-size": 20480, "disk-count": 1, "nic-count": 0, "spindle-use": 1}
_POLICY = {
    "minmax": [
        {
            "min": {**_SPEC, "memory-size": 1, "cpu-count": 1, "disk-size": 1, "disk-count": 1},
            "max": {
                **_SPEC,
                "memory-size": 262144,
                "cpu-count": 64,
                "disk-size": 4096000,
                "disk-count": 16,
                "spindle-use": 64,
            },
        }
    ],
    "std": _SPEC,
    "disk-templates": ["plain"],
    "vcpu-ratio": 32.0,
    "spindle-ratio": 1024.0,
}

"""The power of a node is cut, with all its processes and its network: how long until its VMs answer elsewhere?

Once by its guard's time alone, once with a BMC that says that the machine is off. The VMs' disks are in the pool that all nodes
share. A VM answers once it has run a command, as another start of it than before. At no moment looked at has one two processes.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tests.scenario.bmc_lab import MACHINE, PASSWORD, USER, Bmc, run_redfish

from benchmarks.measurement import ROOT, Figure, Measurement
from weft.client import Client
from weft.client.context import find_context
from weft.launch.local.processes import inspect_processes

WEFT = str(Path(sys.executable).parent / "weft")
NODE, GUESTS, AT_ONCE = "n1", int(os.environ.get("GUESTS", "10")), 4
BY_GUARD_SECONDS, BY_POWER_SECONDS, BACK_SECONDS = 90.0, 15.0, 20.0
PATIENCE_SECONDS = 240.0
LABEL = "bench=node-loss"


def weft(*words: str) -> str:
    done = subprocess.run([WEFT, *words], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"weft {' '.join(words)}: {done.stderr[-600:]}")
    return done.stdout


def read(*words: str) -> dict[str, Any]:
    return dict(json.loads(weft(*words, "-o", "json")))


def list_guests() -> dict[str, dict[str, Any]]:
    return {vm["name"]: vm["status"] for vm in read("get", "vm", "-l", LABEL)["items"]}


def fill() -> None:
    """All guests on the node, each held by its guard."""

    def make(number: int) -> None:
        words = ("--image", "tiny", "--memory", "128M", "--cpu", "0.25", "--pool", "shared")
        weft(
            "vm", "create", f"lost-{number}", *words, "--on-node-loss", "restart", "--label", LABEL, "--timeout", "300s"
        )

    others = [node["name"] for node in read("get", "node")["items"] if node["name"] != NODE]
    for node in others:
        weft("node", "cordon", node)
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(make, range(GUESTS)))
    finally:
        for node in others:
            weft("node", "uncordon", node)
    wait(are_held, 60.0)


def are_held() -> bool:
    placed = [one for one in read("get", "allocation")["items"] if one["spec"]["workload"]["name"].startswith("lost-")]
    return len(placed) == GUESTS and all(one["report"].get("guarded") for one in placed)


def wait(holds: Callable[[], object], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            raise SystemExit(f"it never came: {holds.__name__}")
        time.sleep(0.5)


def cut_power(bmc: Bmc | None) -> float:
    """End the node's first process, and so all of it; the BMC of a real machine would say off from then on."""
    pid = json.loads((ROOT / ".weft" / "run" / f"init-{NODE}.pid").read_bytes())["pid"]
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    if bmc is not None:
        url = f"https://{bmc.host}:{bmc.port}/redfish/v1/Systems/{MACHINE[:-1]}0/Actions/ComputerSystem.Reset"
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {secret}"}
        asked = urllib.request.Request(url, b'{"ResetType": "ForceOff"}', headers)
        urllib.request.urlopen(asked, context=ssl._create_unverified_context(), timeout=10).close()
    return at


def await_answers(before: dict[str, str], at: float) -> list[float]:
    """Seconds after ``at`` by which each has run a command as another start of it."""
    took: dict[str, float] = {}
    with closing(Client(find_context(folder=str(ROOT), environ={}))) as client:
        while len(took) < len(before):
            if time.monotonic() > at + PATIENCE_SECONDS:
                late = min(before.keys() - took)
                raise SystemExit(f"{late} never answered elsewhere: {weft('describe', f'vm/{late}')}")
            for vm in client.list("vm", labels=LABEL).items:
                name, status = vm["name"], vm["status"]
                again = status.get("boot_id") not in ("", None, before[name]) and status["node"] != NODE
                if name not in took and status["phase"] == "Running" and again:
                    weft("vm", "exec", name, "--", "true")
                    took[name] = time.monotonic() - at
            check_single()
            time.sleep(0.5)
    return sorted(took.values())


def check_single() -> None:
    names = [word for one in inspect_processes() for word in one.argv if word.startswith("guest=lost-")]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SystemExit(f"two run of {', '.join(sorted(twice))}")


def bring_back() -> float:
    """Seconds from the start of its agent until the node is Ready again."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "weft.launch.local", "up"], cwd=ROOT, check=True, capture_output=True)
    wait(lambda: read("get", f"node/{NODE}")["status"]["phase"] == "Ready", 120.0)
    return time.monotonic() - began


def lose(bmc: Bmc | None) -> tuple[list[float], float]:
    fill()
    before = {name: status["boot_id"] for name, status in list_guests().items()}
    try:
        found = await_answers(before, cut_power(bmc)), bring_back()
        wait(lambda: not any(one["spec"]["role"] == "lost" for one in read("get", "allocation")["items"]), 120.0)
    finally:
        subprocess.run([WEFT, "vm", "delete", "-l", LABEL, "--yes"], cwd=ROOT, capture_output=True)
    return found


def measure() -> Measurement:
    figures = []
    for what, goal in (("by its guard alone", BY_GUARD_SECONDS), ("with the word of its BMC", BY_POWER_SECONDS)):
        with ExitStack() as stack:
            bmc = None
            if goal == BY_POWER_SECONDS:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                bmc = stack.enter_context(run_redfish(folder))
                words = ["secret", "create", "bench-bmc"]
                for key, value in (("user", USER), ("password", PASSWORD), ("fingerprint", bmc.fingerprint)):
                    (folder / key).write_text(value)
                    words += ["--from-file", f"{key}={folder / key}"]
                weft(*words)
                stack.callback(weft, "secret", "delete", "bench-bmc", "--yes")
                weft(
                    "node",
                    "set",
                    NODE,
                    "--power",
                    f"redfish://{bmc.host}:{bmc.port}",
                    "--power-secret",
                    "default/bench-bmc",
                )
                stack.callback(weft, "node", "set", NODE, "--power", "", "--power-secret", "")
            took, back = lose(bmc)
        middle, last = took[len(took) // 2], took[-1]
        figures += [
            Figure(f"power cut → {GUESTS} VMs answer elsewhere, {what}", f"{last:.1f} s; half of them {middle:.1f} s",
                   goal=f"≤ {goal:.0f} s", kept=last <= goal),
            Figure(f"its return → Ready, {what}", f"{back:.1f} s", goal=f"≤ {BACK_SECONDS:.0f} s", kept=back <= BACK_SECONDS),
        ]  # fmt: skip
    return Measurement("node_loss", f"{GUESTS} VMs of image tiny, 128 MiB each, on one of three nodes.", figures)

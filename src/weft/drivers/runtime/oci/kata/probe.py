"""Whether the node's containerd gives containers machines of their own, by a runtime that makes them: found out by running one,
a program of a few bytes, through it.

Kata's runtimes report what they lack in their own words, which are passed on. Nothing is kept.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import RuntimeProbe
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.oci.containerd.client import Client
from weft.drivers.runtime.oci.containerd.oom_events import Shortages
from weft.drivers.runtime.oci.containerd.probe import find_neighbour, try_one
from weft.drivers.runtime.oci.kata.holder import Kata
from weft.drivers.runtime.oci.kata.translate import name_shim
from weft.drivers.runtime.oci.probe import FoundRuntime, read_machine_facts
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import WeftError

DRIVER = "kata"
PREFIX = "probe-kata-"
KVM = "/dev/kvm"
INSTALL_HINT = "install Kata Containers, or leave out --isolated-runtime: weft has microVMs of its own"


async def probe_kata(
    run_dir: Path,
    groups: ControlGroups,
    clock: Clock,
    client: Client,
    shortages: Shortages,
    node_uid: str,
    runtime_class: str,
) -> FoundRuntime:
    """The probe for the scheduler, and the facts that containers are started with; None where none can be started."""
    shim = name_shim(runtime_class)
    if shutil.which(shim) is None:
        return _report_unusable(f"{shim} isn't in the PATH of this node: {INSTALL_HINT}")
    try:
        version = await find_neighbour(client, {"pid": "processes", "mnt": "mounts"})
        facts = read_machine_facts(groups)
    except WeftError as problem:
        return _report_unusable(f"{problem.message}: {problem.hint}" if problem.hint else problem.message)
    run_dir.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(runtime_class, run_dir / "runtime")
    holder = Kata(client, runtime_class, shortages, groups, clock, node_uid)
    failed = await try_one(PREFIX, holder, client.address, runtime, facts, run_dir, groups, clock)
    if failed is not None:
        return _report_unusable(describe_failure(runtime_class, version, failed, kvm=os.path.exists(KVM)))
    word = shim.removeprefix("containerd-shim-").rpartition("-")[0]
    probe = RuntimeProbe(
        driver=DRIVER,
        usable=True,
        version=f"{word} by containerd {version}",
        accelerator="",
        machines=[],
        capabilities=["exec", "stats", "log"],
        problems=[],
        kinds=("container",),
        isolations=("vm",),
    )
    return FoundRuntime(probe, runtime, facts)


def describe_failure(runtime_class: str, version: str, failed: str, *, kvm: bool) -> str:
    """Pure."""
    lack = "" if kvm else f" (this node has no {KVM}, which its machines need)"
    return f"{runtime_class} of containerd {version} can't run a container on this node{lack}: {failed}"


def _report_unusable(problem: str) -> FoundRuntime:
    warning = f"containers can't run in microVMs: {problem}"
    probe = RuntimeProbe(DRIVER, False, "", "", [], [], [warning], kinds=("container",), isolations=("vm",))
    return FoundRuntime(probe, None, None)

"""Whether the node's containerd holds containers as they are to be held, found out by one: a program of a few bytes, through it.

Starts a short-lived container there; what was found isn't kept, since a containerd is exchanged under a node that runs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.container import ContainerPlan, ContainerProcess
from weft.contracts.host import Capacity
from weft.contracts.runtime import RuntimeProbe
from weft.drivers.processes import host_boot_id
from weft.drivers.runtime.oci.checkpoint import CAPABILITY
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.containerd.client import Client
from weft.drivers.runtime.oci.containerd.holder import Containerd
from weft.drivers.runtime.oci.groups import Groups
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.probe import EXIT_CODE, PROBE, Found, make_program, probe_oci
from weft.drivers.runtime.oci.record import ContainerRecord
from weft.drivers.runtime.oci.runtime import Runtime
from weft.drivers.runtime.oci.translate import Facts
from weft.drivers.runtime.oci.users import choose_first_user
from weft.objects.errors import WeftError

DRIVER = "containerd"
VERSION_SECONDS = 5.0


async def probe_containerd(
    run_dir: Path, groups: Groups, clock: Clock, client: Client, node_uid: str, wanted: str | None
) -> Found:
    """What to tell the scheduler, and what containers are started with; None where none can be."""
    try:
        peer = await asyncio.to_thread(client.find_peer)
        version = await find_version(client)
    except WeftError as problem:
        return _unusable([f"{problem.message}: {problem.hint}"])
    if not peer or os.readlink(f"/proc/{peer}/ns/pid") != os.readlink("/proc/self/ns/pid"):
        return _unusable([f"the containerd at {client.address} sees other processes than this node: start one in it"])
    found = await probe_oci(run_dir, groups, clock, wanted, by_conmon=False)
    if found.runtime is None or found.facts is None:
        return _unusable(found.probe.problems)
    holder = Containerd(client, found.runtime, groups, clock, node_uid)
    failed = await _try(holder, found.runtime, found.facts, run_dir, groups, clock)
    if failed is not None:
        return _unusable([f"containerd {version} doesn't run a container here: {failed}"])
    told = f"{version} ({found.probe.version})"
    probe = msgspec.structs.replace(
        found.probe,
        driver=DRIVER,
        version=told,
        capabilities=[name for name in found.probe.capabilities if name != CAPABILITY],
        checkpoint="containerd holds containers here: weft agent --container-runtime runc",
    )
    return Found(probe, found.runtime, found.facts)


async def find_version(client: Client) -> str:
    """Raises Unavailable where nothing answers."""
    return str((await client.call("version.v1.Version/Version", within=VERSION_SECONDS)).version)


async def _try(
    holder: Containerd, runtime: Runtime, facts: Facts, run_dir: Path, groups: Groups, clock: Clock
) -> str | None:
    """Have it run one; what went wrong, or None."""
    name = f"{PROBE}{os.getpid()}"
    paths = ContainerPaths(run=run_dir / name, state=run_dir / name / "state")
    layer = paths.run / "layer"
    first_user = choose_first_user(name, facts.users, ()) if facts.users[1] else None
    plan = ContainerPlan(
        id=name,
        uid=name,
        name=name,
        incarnation=1,
        layers=[str(layer)],
        process=ContainerProcess(["/probe"]),
        cpu=1.0,
        memory_bytes=64 << 20,
        user_namespace=first_user is not None,
    )
    record = ContainerRecord(plan, runtime.name, host_boot_id(), clock.now(), first_user, holder.address)
    container = Container(paths, record, runtime, holder, groups, Capacity(1, 1, 1), clock, lambda: None)
    try:
        layer.mkdir(parents=True, exist_ok=True)
        (layer / "probe").write_bytes(make_program(facts.machine))
        (layer / "probe").chmod(0o755)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        await holder.launch(container, facts, done)
        code = await holder.exit_code(container)
        return None if code == EXIT_CODE else f"the program that tries it ended with {code}"
    except WeftError as error:
        return error.message
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    finally:
        try:
            await container.sweep()
        except WeftError:
            await asyncio.to_thread(shutil.rmtree, paths.run, True)
        groups.remove_parents()


def _unusable(problems: list[str]) -> Found:
    return Found(RuntimeProbe(DRIVER, False, "", "", [], [], problems, kinds=("container",)), None, None)

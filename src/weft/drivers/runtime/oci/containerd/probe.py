"""Whether the node's containerd can hold weft's containers: found out by running one, a program of a few bytes, through it.

Starts a short-lived container there; the result isn't kept, since a containerd may be replaced while its node runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Capacity
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.oci.checkpoint.probe import CAPABILITY
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.containerd.client import Client
from weft.drivers.runtime.oci.containerd.holder import Containerd
from weft.drivers.runtime.oci.holder import Holder
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.probe import EXIT_CODE, PROBE, FoundRuntime, make_trial, probe_oci, report_unusable
from weft.drivers.runtime.oci.record import ContainerRecord
from weft.drivers.runtime.oci.runtime import Runtime
from weft.drivers.runtime.oci.translate import OciHostFacts
from weft.drivers.runtime.oci.user_namespace import choose_first_user
from weft.objects.errors import DriverFailed, WeftError

DRIVER = "containerd"
VERSION_SECONDS = 5.0


async def probe_containerd(
    run_dir: Path, groups: ControlGroups, clock: Clock, client: Client, node_uid: str, wanted: str | None
) -> FoundRuntime:
    """The probe for the scheduler, and the facts that containers are started with; None where none can be started."""
    try:
        version = await find_neighbour(client, {"pid": "processes"})
    except WeftError as problem:
        return report_unusable([f"{problem.message}: {problem.hint}"], DRIVER)
    found = await probe_oci(run_dir, groups, clock, wanted, by_conmon=False)
    if found.runtime is None or found.facts is None:
        return report_unusable(found.probe.problems, DRIVER)
    holder = Containerd(client, found.runtime, groups, clock, node_uid)
    failed = await try_one(PROBE, holder, client.address, found.runtime, found.facts, run_dir, groups, clock)
    if failed is not None:
        return report_unusable([f"containerd {version} can't run a container on this node: {failed}"], DRIVER)
    description = f"{version} ({found.probe.version})"
    probe = msgspec.structs.replace(
        found.probe,
        driver=DRIVER,
        version=description,
        capabilities=[name for name in found.probe.capabilities if name != CAPABILITY],
        checkpoint="containerd holds containers on this node: use weft agent --container-runtime runc",
    )
    return FoundRuntime(probe, found.runtime, found.facts)


async def find_version(client: Client) -> str:
    """Raises Unavailable where nothing answers."""
    return str((await client.call("version.v1.Version/Version", within=VERSION_SECONDS)).version)


async def find_neighbour(client: Client, shared: dict[str, str]) -> str:
    """The version of a containerd that is in the same namespaces as this process, by their kernel's names; what each has in it, in
    words. Raises Unavailable where nothing answers, DriverFailed for one in others."""
    peer = await asyncio.to_thread(client.find_peer)
    version = await find_version(client)
    for kind, what in shared.items():
        if not peer or os.readlink(f"/proc/{peer}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"):
            raise DriverFailed(
                f"the containerd at {client.address} sees other {what} than this node", hint="start one in it"
            )
    return version


async def try_one(
    prefix: str,
    holder: Holder[Container],
    address: str,
    runtime: Runtime,
    facts: OciHostFacts,
    run_dir: Path,
    groups: ControlGroups,
    clock: Clock,
) -> str | None:
    """Have it run one, whose name begins with ``prefix``; returns what failed, or None."""
    name = f"{prefix}{os.getpid()}"
    paths = ContainerPaths(run=run_dir / name, state=run_dir / name / "state")
    first_user = choose_first_user(name, facts.users, ()) if facts.users[1] else None
    container = None
    try:
        plan = make_trial(name, paths.run, facts.machine, user_namespace=first_user is not None)
        record = ContainerRecord(plan, runtime.name, host_boot_id(), clock.now(), first_user, address)
        container = Container(paths, record, runtime, holder, groups, Capacity(1, 1, 1), clock, lambda: None)
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
        with contextlib.suppress(WeftError):
            if container is not None:
                await container.sweep()
        await asyncio.to_thread(shutil.rmtree, paths.run, True)
        groups.remove_parents()

"""Prepares a container before its holder starts it. ``Container.sweep`` undoes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.driver.container import ContainerPlan
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.container.name_files import plan_name_files
from weft.drivers.linux.processes import ProcessId
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.probe import PROBE
from weft.drivers.runtime.oci.record import ContainerRecord
from weft.drivers.runtime.oci.rootfs.overlay import MOST_LAYERS, make_folders
from weft.drivers.runtime.oci.translate import OciHostFacts, Users, inspect_devices, translate_container
from weft.drivers.runtime.oci.user_namespace import USERS_EACH, belongs_to, open_mapping_aside
from weft.objects.errors import DriverFailed, InvalidInput, WeftError

ENDED_ALREADY = ProcessId(0, 0)  # no process


def write_config(paths: ContainerPaths, config: dict[str, Any]) -> None:
    """Write the configuration for the runtime alone: the environment in it may be secret."""
    with os.fdopen(os.open(paths.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(config))


def prepare_config(
    container: Container, facts: OciHostFacts, groups: ControlGroups, mapping: int | None
) -> dict[str, Any]:
    """Its folders, and the OCI configuration over them, good as long as ``mapping``, the namespace of its users, is open. Raises
    InvalidInput for devices that aren't."""
    record, paths, plan = container.record, container.paths, container.record.plan
    write_files(container)
    return translate_container(
        plan,
        paths,
        facts,
        cgroup=groups.path(plan.id),
        users=_find_users(record, mapping),
        devices=inspect_devices(plan.devices),
    )


def _find_users(record: ContainerRecord, mapping: int | None) -> Users | None:
    """A runtime that finds its users in the namespace to which its network belongs goes there; one whose network is the node's
    makes another, once it has entered that network."""
    if record.first_user is None or mapping is None:
        return None
    joins = belongs_to(record.plan.netns, mapping)
    return Users(record.first_user, f"/proc/{os.getpid()}/fd/{mapping}" if joins else "")


def write_files(container: Container) -> None:
    """Its folders, and what stands in its /etc by name."""
    paths = container.paths
    make_folders(paths, disk=bool(container.record.plan.disk_bytes))
    for name, text in plan_name_files(container.record.plan).items():
        (paths.files / name).write_text(text)
        (paths.files / name).chmod(0o644)


@asynccontextmanager
async def make_ready(container: Container, who: str) -> AsyncIterator[int | None]:
    """A descriptor of the namespace that maps its users, if it has its own. Failures are reported as this container's."""
    record = container.record
    mapping = None
    try:
        if record.first_user is not None:
            mapping = await open_mapping_aside(record.first_user, record.plan.netns)
        yield mapping
    except InvalidInput:
        raise
    except WeftError as error:
        raise failed(container, error.message) from None
    except OSError as error:
        raise failed(container, f"{error.filename or who}: {error.strerror}") from error
    finally:
        if mapping is not None:
            os.close(mapping)


def failed(container: Container, what: str) -> DriverFailed:
    return DriverFailed(f"container/{container.record.plan.name}: {what}", details={"step": "launch"})


def check_plan(plan: ContainerPlan, facts: OciHostFacts) -> None:
    """Raises InvalidInput for a plan that this node can't fulfil."""
    if not plan.layers or len(plan.layers) > MOST_LAYERS:
        raise InvalidInput(
            f"container/{plan.name}: its image has {len(plan.layers)} layers, which is too many", field="image"
        )
    if not plan.process.argv:
        raise InvalidInput(
            f"container/{plan.name}: its image names no command to run", field="command",
            hint="set spec.command",
        )  # fmt: skip
    if plan.terminal:
        raise InvalidInput(f"container/{plan.name}: this runtime gives containers no terminal", field="terminal")
    if plan.user_namespace and not facts.users[1]:
        raise InvalidInput(
            f"container/{plan.name}: this node can't give it a user namespace of its own", field="user_namespace",
            hint="place it on a node that has the capability user-namespace",
        )  # fmt: skip
    user = plan.process.user
    if plan.user_namespace and max(user.uid, user.gid) >= USERS_EACH:
        raise InvalidInput(
            f"container/{plan.name}: its user and group must be below {USERS_EACH}: it has so many of its own", field="spec.user",
            hint=f"weft container set {plan.name} --user 1000",
        )  # fmt: skip


def drop_remains(states: Collection[Path], run: Path, groups: ControlGroups, known: Collection[str]) -> None:
    """Remove what removals left that were cut off: state folders and unused run folders of no known container."""
    for folder in states:
        if folder.name not in known:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in run.glob("*/rootfs"):
        name = folder.parent.name
        if name.startswith(PROBE):
            groups.kill(name)
        if name not in known and not groups.processes(name):
            shutil.rmtree(folder.parent, ignore_errors=True)
            groups.remove(name)

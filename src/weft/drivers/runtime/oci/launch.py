"""What is made ready for a container before whoever holds it starts it. Undone by ``Container.sweep``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from weft.drivers.processes import ProcessId
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.groups import Groups
from weft.drivers.runtime.oci.root import make_folders
from weft.drivers.runtime.oci.translate import Facts, inspect_devices, plan_files, translate_container
from weft.drivers.runtime.oci.users import open_mapping_aside
from weft.objects.errors import DriverFailed, WeftError

ENDED_ALREADY = ProcessId(0, 0)  # no process


def write_config(container: Container, facts: Facts, groups: Groups) -> None:
    """Its folders, and in them all that its runtime reads. Raises InvalidInput for devices that aren't."""
    config = prepare_config(container, facts, groups)
    descriptor = os.open(
        container.paths.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
    )  # its environment may be secret
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(config))


def prepare_config(container: Container, facts: Facts, groups: Groups) -> dict[str, Any]:
    """Its folders, and the OCI configuration over them."""
    record, paths, plan = container.record, container.paths, container.record.plan
    write_files(container)
    return translate_container(
        plan,
        paths,
        facts,
        cgroup=groups.path(plan.id),
        first_user=record.first_user,
        devices=inspect_devices(plan.devices),
    )


def write_files(container: Container) -> None:
    """Its folders, and what stands in its /etc by name."""
    paths = container.paths
    make_folders(paths)
    for name, text in plan_files(container.record.plan).items():
        (paths.files / name).write_text(text)
        (paths.files / name).chmod(0o644)


@asynccontextmanager
async def make_ready(container: Container, who: str) -> AsyncIterator[int | None]:
    """A descriptor of the namespace that maps its users, if it has its own; what fails meanwhile is told as this container's."""
    record = container.record
    mapping = await open_mapping_aside(record.first_user) if record.first_user is not None else None
    try:
        yield mapping
    except WeftError as error:
        raise failed(container, error.message) from None
    except OSError as error:
        raise failed(container, f"{error.filename or who}: {error.strerror}") from error
    finally:
        if mapping is not None:
            os.close(mapping)


def failed(container: Container, what: str) -> DriverFailed:
    return DriverFailed(f"container {container.record.plan.name}: {what}", details={"step": "launch"})

"""Starting one container: its files, its root, its shim, and the word to go. Undone by ``Container.sweep``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Awaitable, Collection

import msgspec

from weft.contracts.clock import Clock
from weft.drivers.own_thread import leave_mounts, run_in_own_thread
from weft.drivers.processes import ProcessId
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.groups import Groups
from weft.drivers.runtime.oci.root import Root, make_folders, mount_root
from weft.drivers.runtime.oci.runtime import ANSWER_SECONDS, read_error
from weft.drivers.runtime.oci.shim import find_first_process, find_shim, plan_shim, run_shim
from weft.drivers.runtime.oci.translate import Facts, inspect_devices, plan_files, translate_container
from weft.drivers.runtime.oci.users import open_mapping_aside
from weft.objects.errors import DriverFailed, WeftError

ENDED_ALREADY = ProcessId(0, 0)  # no process


async def launch_container(
    container: Container, facts: Facts, groups: Groups, clock: Clock, recorded: Awaitable[None]
) -> None:
    """Returns when its process runs; nothing does before ``recorded``, that the start is on disk. Raises DriverFailed,
    InvalidInput; what it has made by then stays, for ``sweep``."""
    record, paths, plan = container.record, container.paths, container.record.plan
    _write_files(container, facts, groups)
    shims = groups.make_shims()
    mapping = await open_mapping_aside(record.first_user) if record.first_user is not None else None
    try:
        await recorded
        root = Root(plan, paths, record.first_user, mapping)
        await run_in_own_thread(lambda: _create_and_start(container, root, shims, clock))
    except WeftError as error:
        raise _failed(container, error.message) from None
    except OSError as error:
        raise _failed(container, f"{error.filename}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise _failed(container, f"{container.runtime.name} didn't start it within {ANSWER_SECONDS:.0f} s") from None
    finally:
        if mapping is not None:
            os.close(mapping)
    record.process = find_first_process(paths, groups.processes(plan.id)) or ENDED_ALREADY
    record.shim = find_shim(paths)
    record.started = True


def _write_files(container: Container, facts: Facts, groups: Groups) -> None:
    record, paths, plan = container.record, container.paths, container.record.plan
    make_folders(paths)
    for name, text in plan_files(plan).items():
        (paths.files / name).write_text(text)
        (paths.files / name).chmod(0o644)
    config = translate_container(
        plan,
        paths,
        facts,
        cgroup=groups.path(plan.id),
        first_user=record.first_user,
        devices=inspect_devices(plan.devices),
    )
    descriptor = os.open(paths.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # the environment may be secret
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(config))


def _create_and_start(container: Container, root: Root, shims: Collection[str], clock: Clock) -> None:
    """In a thread of its own."""
    runtime, paths, plan = container.runtime, container.paths, container.record.plan
    leave_mounts(runtime.hidden)
    mount_root(root)
    run_shim(plan_shim(plan, paths, runtime, shims), paths.shim_log, clock)
    said = subprocess.run(
        runtime.words("start", plan.id), stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_SECONDS, check=False
    )  # fmt: skip
    if said.returncode != 0:
        raise DriverFailed(read_error(said.stderr.decode(errors="replace")), details={"step": "start"})


def _failed(container: Container, what: str) -> DriverFailed:
    return DriverFailed(f"container {container.record.plan.name}: {what}", details={"step": "launch"})

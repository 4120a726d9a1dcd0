"""Whether this node can save a container as it runs and restore one that another node saved: runc does that through CRIU, which
depends on the kernel. Asks both, changes nothing. The answer is one sentence, with the remedy."""

from __future__ import annotations

import re
import shutil

from weft.drivers.runtime.oci.mount_namespace import Finished, run_in_mount_namespace
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import DriverFailed

CAPABILITY = "checkpoint"
CRIU = "criu"
CHECK_SECONDS = 30.0
_ERROR = re.compile(r"^(?:\([\d.]+\)\s*)?(?:\d+:\s*)?Error \((?P<where>[^)]*)\):\s*(?P<what>.+)$", re.MULTILINE)
_ECHOES = ("criu/util.c",)  # reports the end of a child, before its cause


async def find_checkpoint_problem(runtime: Runtime) -> str:
    """Why containers can't be saved here; empty: they can."""
    if runtime.name != "runc":
        return f"{runtime.name} can't save containers: use weft agent --container-runtime runc"
    program = shutil.which(CRIU)
    if program is None:
        return "criu is not installed"
    try:
        version = await run_in_mount_namespace([program, "--version"], [], timeout_seconds=CHECK_SECONDS)
        checked = await run_in_mount_namespace([program, "check"], [], timeout_seconds=CHECK_SECONDS)
    except DriverFailed as problem:
        return problem.message
    return describe_check(version.out.decode(errors="replace"), checked)


def describe_check(version: str, done: Finished) -> str:
    """Pure. Why ``criu check`` refuses this kernel; empty: it doesn't."""
    if done.status == 0:
        return ""
    number = next((word for word in version.split() if word[:1].isdigit()), "")
    text = f"{done.out.decode(errors='replace')}\n{done.err}"
    why = find_error(text) or f"exit code {done.status}"
    return f"criu {number} doesn't work with this kernel ({why}): a newer one may".replace("criu  ", "criu ")


def find_error(text: str) -> str:
    """Pure. The first error in CRIU's output, which is the cause of the others; empty: there is none."""
    errors = (found["what"].strip() for found in _ERROR.finditer(text) if not found["where"].startswith(_ECHOES))
    return next(errors, "")

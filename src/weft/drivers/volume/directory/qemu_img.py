"""qemu-img on files that a guest's machine could write: what a header says of other files is never followed.

qemu-img is root here. A header that names a file for the data would have it written there, so it is checked first; what lies under
a file is given explicitly, whatever its header says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from weft.drivers.linux.programs import run_on_disk
from weft.objects.errors import DriverFailed
from weft.objects.image.qcow2 import HEADER_BYTES, read_qcow2_header

TIMEOUT_SECONDS = 60.0
COPY_SECONDS = 3600.0
_SECTOR = 512


async def run_qemu_img(*words: str, seconds: float = TIMEOUT_SECONDS) -> None:
    await run_on_disk(["qemu-img", *words], "qemu-utils", seconds=seconds)


def describe_chain(files: Sequence[tuple[str, str]], *, locking: bool = True) -> str:
    """The name by which qemu-img opens the last of ``files`` on the ones before; each is a path and a format. Without ``locking``
    they may change in ways that leave the content as it is."""
    lock = {} if locking else {"locking": "off"}
    node: dict[str, object] | None = None
    for path, format in files:
        below = {"backing": node} if format == "qcow2" else {}
        node = {"driver": format, "file": {"driver": "file", "filename": path, **lock}, **below}
    return f"json:{json.dumps(node)}"


def check_own(path: Path, what: str) -> None:
    """Raises DriverFailed for a file that is no qcow2, or has its data elsewhere."""
    with path.open("rb") as file:
        header = read_qcow2_header(file.read(HEADER_BYTES))
    if header is None or header.has_external_data:
        raise DriverFailed(
            f"{what} refers to another file for its data, which weft never does",
            hint="don't trust its content; restore it from a backup",
            details={"step": "disk"},
        )


def round_up(size: int) -> int:
    return -(-size // _SECTOR) * _SECTOR

"""A process that makes an image of a VM's disk, for a node's agent: ``python -m weft.backup.process.make_image``.

Reads an ImageJob from its standard input, as JSON; writes ImageLines to its standard output, one JSON object a line: one for each
step, and one at the end. It reads the disk from where the pool serves it, and leaves the bundle as ``image`` in the job's folder.
The agent removes that folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from weft.backup.process.clean import clean
from weft.backup.process.image_job import BUNDLE, DISK, ImageJob, ImageLine
from weft.backup.process.nbd import NbdClient
from weft.contracts.disk_program import NO_SPACE, bound_seconds, find_trouble
from weft.objects.errors import DriverFailed, WeftError
from weft.objects.image.bundle import MANIFEST_NAME
from weft.objects.quantity import format_bytes

SPARE_BYTES = 256 << 20
SECONDS = 6 * 3600.0  # for the longest step, at most
_STEP, _HOLE = 4 << 20, 64 << 10


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=ImageJob)
    with contextlib.suppress(OSError):
        os.nice(10)
    try:
        end = make(job, _send)
    except WeftError as problem:
        said = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
        end = ImageLine(reason=problem.token, message=said)
    except (OSError, subprocess.SubprocessError) as problem:
        full = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
        why = getattr(problem, "strerror", None) or problem
        end = ImageLine(reason="noSpace" if full else "driverFailed", message=f"the image can't be made: {why}")
    _send(end)
    return 0


def make(job: ImageJob, send: Callable[[ImageLine], None]) -> ImageLine:
    """Raises WeftError, OSError."""
    folder = Path(job.folder)
    raw, disk = folder / "disk.raw", folder / DISK
    send(ImageLine(step="copies the disk"))
    _copy(job, raw)
    cleaned: list[str] = []
    if not job.keeps_identity:
        send(ImageLine(step="removes the machine's identity"))
        cleaned = clean(str(raw), job.hostname)
    send(ImageLine(step="packs the image"))
    packed = ("-c", "-o", "compression_type=zstd")  # a third of the bytes to send, and for each node to fetch
    seconds = bound_seconds(raw.stat().st_blocks * 512, SECONDS)
    _run(seconds, "qemu-img", "convert", "-q", *packed, "-f", "raw", "-O", "qcow2", str(raw), str(disk))
    raw.unlink()
    _write_bundle(job, disk, folder / BUNDLE)
    disk.unlink()
    with (folder / BUNDLE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ImageLine(sha256=digest, size=os.fstat(file.fileno()).st_size, cleaned=cleaned)


def _copy(job: ImageJob, raw: Path) -> None:
    """The whole disk, with holes where it has none but zeroes."""
    data = sum(length for _, length, zero in job.extents if not zero)
    free = shutil.disk_usage(raw.parent).free
    if free < 2 * data + SPARE_BYTES:  # as it is, and packed
        raise DriverFailed(
            f"the image needs {format_bytes(2 * data + SPARE_BYTES)} on the node while it is made, and "
            f"{format_bytes(free)} are free",
            reason="noSpace",
            hint="free some space on the node's disk, or migrate the VM to another node, then create the image again",
        )
    with raw.open("xb", buffering=0) as out, NbdClient(job.socket) as source:
        raw.chmod(0o600)
        out.truncate(job.size)
        ranges = list(_cut(job.extents))
        for (offset, _), piece in zip(ranges, source.read_ahead(ranges), strict=True):
            for at in range(0, len(piece), _HOLE):
                part = piece[at : at + _HOLE]
                if part != bytes(len(part)):
                    _write(out.fileno(), offset + at, part)


def _cut(extents: list[tuple[int, int, bool]]) -> Iterator[tuple[int, int]]:
    for start, length, zero in extents:
        for at in range(0, 0 if zero else length, _STEP):
            yield start + at, min(_STEP, length - at)


def _write(place: int, offset: int, data: bytes) -> None:
    while data:
        done = os.pwrite(place, data, offset)
        offset, data = offset + done, data[done:]


def _write_bundle(job: ImageJob, disk: Path, target: Path) -> None:
    """The disk with the kernel and the initrd that the VM boots, if its image has some."""
    manifest = msgspec.structs.replace(job.manifest, disk=DISK, disk_format="qcow2")
    parts = [name for name in manifest.parts if name != DISK]
    text = msgspec.json.format(msgspec.json.encode(manifest))
    with tarfile.open(target, "x", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(_name_member(MANIFEST_NAME, len(text)), io.BytesIO(text))
        for path in (disk, *(Path(job.parts) / name for name in parts)):
            with path.open("rb") as file:
                archive.addfile(_name_member(path.name, os.fstat(file.fileno()).st_size), file)


def _name_member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _run(seconds: float, *argv: str) -> None:
    """Raises DriverFailed."""
    try:
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as problem:
        raise DriverFailed(f"{argv[0]} did not end within {seconds:g} s") from problem
    except FileNotFoundError as problem:
        raise DriverFailed("setpriv is not installed", hint="apt-get install util-linux") from problem
    if done.returncode != 0:
        said = done.stderr.strip()[-300:]
        trouble = find_trouble(said)
        raise DriverFailed(f"{argv[0]} failed: {said}", reason="noSpace" if trouble == NO_SPACE else None, hint=trouble)


def _send(line: ImageLine) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())

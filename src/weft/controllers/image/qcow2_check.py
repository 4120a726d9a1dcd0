"""Whether a qcow2 is whole, by qemu-img: as nobody, bounded in time, memory and output, since a stranger made the file."""

from __future__ import annotations

import os
import subprocess
from typing import Any, BinaryIO

import msgspec

from weft.contracts.confinement.unprivileged import NOBODY
from weft.objects.image.bundle import not_an_image

CHECK_SECONDS = 60.0
WHOLE = "qemu-img convert -O qcow2 makes it self-contained"
_BOUNDS = ["prlimit", "--cpu=40", "--as=2147483648", "--fsize=0", "--core=0"]
_SOUND, _LEAKS, _UNSUPPORTED = 0, 3, 63  # what check ends with for images that read well
_NO_PROGRAM = 127  # prlimit found no qemu-img


def check_qcow2(file: BinaryIO, offset: int, size: int, what: str) -> None:
    """Check the qcow2 at ``offset`` with qemu-img, where there is one: its header, and that all that it refers to is there.
    Raises DriverFailed (``notAnImage``)."""
    place = {
        "driver": "raw",
        "offset": offset,
        "size": -(-size // 512) * 512,
        "file": {"driver": "file", "filename": "/dev/stdin"},
    }
    name = msgspec.json.encode({"driver": "qcow2", "file": place if offset else place["file"]}).decode()
    done = _run(file, "info", name, what, stderr=subprocess.PIPE)
    if done is None:
        return
    if done.returncode != 0:
        reason = done.stderr.strip().removeprefix("qemu-img: ").replace(f"Could not open 'json:{name}': ", "")[-200:]
        raise not_an_image(f"{what} is a damaged qcow2: {reason or 'it needs too much time or memory'}")
    info = _read(done.stdout, what)
    if "backing-filename" in info or "full-backing-filename" in info:
        raise not_an_image(f"{what} is a qcow2 that depends on another file", WHOLE)
    if info.get("encrypted"):
        raise not_an_image(f"{what} is encrypted", "qemu-img convert makes an unencrypted one")
    if info.get("format-specific", {}).get("data", {}).get("corrupt"):
        raise not_an_image(f"{what} is a qcow2 that is marked as corrupt", "qemu-img check -r all repairs what it can")
    _check_references(file, name, what)


def _check_references(file: BinaryIO, name: str, what: str) -> None:
    # Not its complaints: a hostile file has a million of them.
    done = _run(file, "check", name, what, stderr=subprocess.DEVNULL)
    if done is None or done.returncode in (_SOUND, _LEAKS, _UNSUPPORTED):
        return
    found = _read(done.stdout, what) if done.stdout.strip() else {}
    count = int(found.get("corruptions", 0)) + int(found.get("check-errors", 0))
    if not count:
        raise not_an_image(f"{what} is a damaged qcow2: it needs too much time or memory")
    raise not_an_image(
        f"{what} is a damaged qcow2: the file ends before its data, or its tables are wrong ({count} errors)",
        "fetch it again and compare its sha256; qemu-img check shows what is wrong",
    )


def _run(file: BinaryIO, act: str, name: str, what: str, *, stderr: int) -> subprocess.CompletedProcess[str] | None:
    """None: there is no qemu-img here."""
    rights: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}
    file.seek(0)
    try:
        done = subprocess.run(
            [*_BOUNDS, "qemu-img", act, "-U", "--output=json", f"json:{name}"],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
            cwd="/",
            **rights,
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as problem:
        raise not_an_image(f"qemu-img could not read {what} in time") from problem
    return None if done.returncode == _NO_PROGRAM else done


def _read(text: str, what: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as problem:
        raise not_an_image(f"qemu-img could not read {what}") from problem

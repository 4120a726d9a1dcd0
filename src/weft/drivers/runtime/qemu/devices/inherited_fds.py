"""Files that a guest's QEMU inherits open, since its own user may open none of them by name: disks, boot files, logs, sockets,
taps.

``plan_inherited_fds`` is pure; ``open_inherited_fds`` opens files, binds sockets in the guest's run folder, and attaches to
taps.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from weft.contracts.driver.runtime import BootDisk, BootKernel, GuestDisk, GuestNic, GuestPlan
from weft.drivers.linux.ceph.conf import write_client_conf
from weft.drivers.runtime.qemu.devices.ids import file_names, key_name, list_layer_files, nic_name
from weft.drivers.runtime.qemu.translate import RAM, GuestPaths, has_qemu_port
from weft.objects.errors import DriverFailed

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_READABLE, _OTHERS = 0o444, 0o077


class InheritedFd(msgspec.Struct, frozen=True):
    """One of them. ``public``: QEMU opens it once more, through /proc, and so must be allowed to read it;
    ``write``: nobody else may."""

    name: str
    kind: Literal["read", "public", "write", "append", "socket", "tap", "ceph"]
    where: str  # path, or the tap's link
    user: str = ""  # ceph: whose configuration is written from the ceph.conf at ``where``


def plan_inherited_fds(plan: GuestPlan, paths: GuestPaths) -> list[InheritedFd]:
    """All that ``translate_guest`` uses by name."""
    sockets = {"qmp": paths.qmp, "qmp2": paths.counters_qmp, "console": paths.console}
    if plan.has_agent:
        sockets["agent"] = paths.agent
    if has_qemu_port(plan):
        sockets["qga"] = paths.qemu_agent
    planned = [InheritedFd(name, "socket", str(path)) for name, path in sockets.items()]
    planned.append(InheritedFd("console-log", "append", str(paths.console_log)))
    if isinstance(plan.boot, BootKernel):
        planned += [
            InheritedFd("kernel", "public", plan.boot.kernel),
            InheritedFd("initrd", "public", plan.boot.initrd),
        ]
    elif isinstance(plan.boot, BootDisk) and plan.boot.firmware == "uefi":
        planned.append(InheritedFd("uefi-vars", "write", str(paths.uefi_vars)))
    if plan.ram:
        planned.append(InheritedFd(RAM, "public" if plan.memory else "read", plan.ram))
    for disk in plan.disks:
        planned += plan_disk(disk)
        planned += [InheritedFd(key_name(disk), "public", disk.key)] if disk.key else []
    return planned + [plan_nic(nic) for nic in plan.nics]


def plan_disk(disk: GuestDisk) -> list[InheritedFd]:
    own, *below = file_names(disk)
    if disk.rbd is not None:
        return [InheritedFd(own, "ceph", disk.rbd.conf, disk.rbd.user)]
    paths = [*([] if disk.base is None else [disk.base]), *(layer.path for _, layer in list_layer_files(disk))]
    planned = [InheritedFd(own, "read" if disk.read_only else "write", disk.path)]
    return planned + [InheritedFd(name, "read", path) for name, path in zip(below, paths, strict=True)]


def plan_nic(nic: GuestNic) -> InheritedFd:
    return InheritedFd(nic_name(nic), "tap", nic.ifname)


@contextlib.contextmanager
def open_inherited_fds(planned: list[InheritedFd]) -> Iterator[Mapping[str, int]]:
    """Descriptors by name, open within the block. Raises DriverFailed that names what can't be opened."""
    opened: dict[str, int] = {}
    try:
        for thing in planned:
            try:
                opened[thing.name] = _open(thing)
            except OSError as problem:
                raise DriverFailed(
                    f"{thing.where} can't be opened: {problem.strerror or problem}", details={"step": "launch"}
                ) from problem
        yield opened
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _open(thing: InheritedFd) -> int:
    match thing.kind:
        case "socket":
            return _listen(thing.where)
        case "tap":
            return _attach(thing.where)
        case "ceph":
            return _write_conf(thing)
        case "append":
            return os.open(thing.where, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    descriptor = os.open(thing.where, (os.O_RDWR if thing.kind == "write" else os.O_RDONLY) | os.O_CLOEXEC)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    wanted = {"write": mode & ~_OTHERS, "public": mode | _READABLE}.get(thing.kind, mode)
    if mode != wanted:
        os.fchmod(descriptor, wanted)
    return descriptor


def _write_conf(thing: InheritedFd) -> int:
    """A file without a name: its key is QEMU's, which the image is open to, and nobody else's."""
    text = write_client_conf(thing.where, thing.user).encode()
    descriptor = os.memfd_create("ceph.conf", os.MFD_CLOEXEC)
    os.write(descriptor, text)
    os.fchmod(descriptor, _READABLE)
    return descriptor


def _listen(path: str) -> int:
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        return listener.detach()


def _attach(link: str) -> int:
    descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", link.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

"""The seed disk, which gives a guest its name, users and user data. Raw, read-only, with serial SEED_SERIAL.

Two forms: a plain tar with ``./user-data`` and ``./meta-data``, and ``./machine`` for images made from a container's; and
NoCloud for cloud-init: an ISO 9660 file system labelled cidata. Pure: the same bytes for the same allocation.
"""

from __future__ import annotations

import io
import struct
from ipaddress import ip_network
from typing import Any

import msgspec

from weft.agent.state.allocation import LocalAllocation
from weft.agent.workload.shape import name_serial

_SECTOR = 2048
_ROOT_AT = 20  # sector of the root folder; before it: 16 unused, two descriptors, two path tables


def build_tar(local: LocalAllocation, *, machine: bool = False) -> bytes:
    """A tar with ``./user-data`` and ``./meta-data``, and ``./machine`` if ``machine``."""
    ref = local.spec.workload
    meta = f"instance-id: {local.spec.instance or ref.uid}\nlocal-hostname: {local.spec.hostname or ref.name}\n"
    files = {"./user-data": local.spec.user_data, "./meta-data": meta}
    if machine:
        files["./machine"] = render_machine(local)
    import tarfile  # noqa: PLC0415 - an agent without VMs never needs it

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def render_machine(local: LocalAllocation) -> str:
    """Lines for ``images/microvm/vm.c``: its name, its NICs (the first one has the default route) and its volumes' disks."""
    spec, lines = local.spec, [f"hostname {local.spec.hostname or local.spec.workload.name}"]
    for index, nic in enumerate(spec.nics):
        prefix, gateway = ip_network(nic.cidr).prefixlen, "-" if index else nic.gateway
        lines.append(f"nic {nic.mac} {nic.address} {prefix} {gateway} {nic.mtu}")
    for nic in spec.nics[:1]:
        lines += [f"nameserver {nic.gateway}", *([f"search {nic.domain}"] if nic.domain else [])]
    lines += [f"volume {name_serial(volume.name)} {volume.name}" for volume in spec.volumes]
    return "".join(f"{line}\n" for line in lines)


def build_nocloud(local: LocalAllocation) -> bytes:
    """Cloud-init's input: instance and name, users and keys, the network (DHCP on every NIC), and the user's own data, which wins
    over the rest."""
    spec = local.spec
    meta: dict[str, Any] = {
        "instance-id": spec.instance or spec.workload.uid,
        "local-hostname": spec.hostname or spec.workload.name,
    }
    ours: dict[str, Any] = {"disable_root": False}
    if spec.ssh_keys:
        meta["public-keys"] = spec.ssh_keys
    if spec.users:
        rights: dict[str, Any] = {"sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/bash"}
        if spec.ssh_keys:  # cloud-init calls an empty list invalid
            rights["ssh_authorized_keys"] = spec.ssh_keys
        ours["users"] = ["default", *({"name": name, **rights} for name in spec.users)]
    nics = {f"nic{index}": {"match": {"macaddress": nic.mac}, "dhcp4": True} for index, nic in enumerate(spec.nics)}
    return pack_iso(
        "cidata",
        {
            "meta-data": msgspec.json.encode(meta),
            "network-config": msgspec.json.encode({"version": 2, "ethernets": nics}),
            "user-data": spec.user_data.encode(),
            "vendor-data": b"#cloud-config\n" + msgspec.json.encode(ours),  # JSON is YAML
        },
    )


def pack_iso(label: str, files: dict[str, bytes]) -> bytes:
    """An ISO 9660 image (ECMA-119) with these files at its top; names of at most 30 characters."""
    body, entries = bytearray(), _record(b"\0", _ROOT_AT, _SECTOR, 2) + _record(b"\1", _ROOT_AT, _SECTOR, 2)
    for name, content in sorted(files.items()):
        place = _ROOT_AT + 1 + len(body) // _SECTOR
        entries += _record(f"{name.upper()};1".encode(), place, len(content), 0)
        body += content + bytes(-len(content) % _SECTOR)
    sectors = _ROOT_AT + 1 + len(body) // _SECTOR
    table = struct.pack("<BBIH", 1, 0, _ROOT_AT, 1) + b"\0\0", struct.pack(">BBIH", 1, 0, _ROOT_AT, 1) + b"\0\0"
    out = bytearray(16 * _SECTOR)
    out += _descriptor(label, sectors, len(table[0])).ljust(_SECTOR, b"\0")
    out += b"\xffCD001\1".ljust(_SECTOR, b"\0")
    for part in (*table, entries):
        out += part.ljust(_SECTOR, b"\0")
    return bytes(out + body)


def _descriptor(label: str, sectors: int, table_bytes: int) -> bytes:
    """The primary volume descriptor, field after field."""
    return b"".join((
        b"\1CD001\1\0", b" " * 32, label.encode().ljust(32), bytes(8), _both(sectors), bytes(32),
        _both16(1), _both16(1), _both16(_SECTOR), _both(table_bytes),
        struct.pack("<II", 18, 0), struct.pack(">II", 19, 0), _record(b"\0", _ROOT_AT, _SECTOR, 2),
        b" " * (4 * 128 + 3 * 37), (b"0" * 16 + b"\0") * 4, b"\1",
    ))  # fmt: skip


def _record(name: bytes, place: int, size: int, flags: int) -> bytes:
    """A folder's entry for a file or folder at sector ``place``."""
    body = b"\0" + _both(place) + _both(size) + bytes(7) + bytes([flags, 0, 0]) + _both16(1) + bytes([len(name)]) + name
    padding = b"\0" * ((len(body) + 1) % 2)
    return bytes([len(body) + 1 + len(padding)]) + body + padding


def _both(number: int) -> bytes:
    return struct.pack("<I", number) + struct.pack(">I", number)


def _both16(number: int) -> bytes:
    return struct.pack("<H", number) + struct.pack(">H", number)

"""This machine's capacity, kernel and address, read once from /proc and the like."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path

import msgspec

from weft.contracts.driver.host import Capacity
from weft.contracts.durable_file import write_durably

MIB = 1024 * 1024
RESERVE_MEMORY_BYTES = 512 * MIB
RESERVE_MEMORY_SHARE = 0.1
DISK_SHARE = 0.9
ADDRESS_FILE, LOOPBACK = "address", "127.0.0.1"


class MachineFacts(msgspec.Struct, frozen=True):
    """Facts that stay as long as the machine is up."""

    kernel: str
    boot_id: str


def inspect_machine() -> MachineFacts:
    return MachineFacts(platform.release(), Path("/proc/sys/kernel/random/boot_id").read_text().strip())


def inspect_capacity(state_dir: str, cpu: float | None, memory: int | None, disk: int | None) -> Capacity:
    """The capacity for guests: as configured, else all cores, memory except for a reserve, most of the free disk."""
    if memory is None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = max(64 * MIB, int(total - max(RESERVE_MEMORY_BYTES, total * RESERVE_MEMORY_SHARE)))
    if disk is None:
        own = sum(path.lstat().st_blocks * 512 for path in Path(state_dir).rglob("*"))
        disk = int((shutil.disk_usage(state_dir).free + own) * DISK_SHARE)
    return Capacity(cpu if cpu is not None else float(len(os.sched_getaffinity(0))), memory, disk)


def recall_own_address(state_dir: Path, server_host: str, server_port: int) -> str:
    """This machine's address on the route to the server, which is kept; without a route the one that was kept: guests' networks
    know the node by it."""
    file, address, known = state_dir / ADDRESS_FILE, find_own_address(server_host, server_port), ""
    with contextlib.suppress(OSError, ValueError):
        known = str(ipaddress.ip_address(file.read_text()[:64].strip()))
    if address not in ("", LOOPBACK, known):
        with contextlib.suppress(OSError):  # a full disk
            write_durably(file, f"{address}\n".encode(), 0o644)
    return address or known or LOOPBACK


def find_own_address(server_host: str, server_port: int) -> str:
    """This machine's address on the route to the server; nothing is sent. Empty without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((server_host, server_port))
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def find_link(address: str) -> str:
    """The interface that holds ``address``; empty if none does, or ``ip`` can't say: it isn't there, or can't run here."""
    try:
        listing = subprocess.run(["ip", "-j", "-4", "address"], capture_output=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    for link in msgspec.json.decode(listing or b"[]"):
        if any(info.get("local") == address for info in link.get("addr_info", ())):
            return str(link["ifname"])
    return ""

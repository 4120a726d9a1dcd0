"""Stands in for a guest's NIC: copies frames between a node's tap and a tap inside the guest's namespace, as QEMU does.

Arguments: node namespace, tap, guest namespace, MAC, name of the NIC. Prints ``ready`` when the guest has it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys

TUNSETIFF, IFF_TAP, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0002, 0x1000, 0x40000000


def enter(namespace: str) -> None:
    with open(f"/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"can't enter {namespace}")


def open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def main(node: str, tap: str, guest: str, mac: str, nic: str) -> None:
    enter(node)
    outer = open_tap(tap)
    enter(guest)
    inner = open_tap(nic)
    subprocess.run(["ip", "link", "set", "dev", nic, "address", mac, "up"], check=True)
    print("ready", flush=True)
    other = {outer: inner, inner: outer}
    try:
        while True:
            for end in select.select([outer, inner], [], [])[0]:
                os.write(other[end], os.read(end, 65536))
    except OSError:
        pass  # unplugged


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Stands in for a guest's NIC: copies frames between a node's tap and a tap inside the guest's namespace, as QEMU does.

Arguments: node namespace, tap, guest namespace, MAC, name of the NIC. Prints ``ready`` when the guest has it.
It moves when told by its input: after ``at NODE TAP`` it holds that tap too, after ``stop`` it copies nothing, and after
``go`` it copies between the new tap and the guest; each is answered by ``ready``.
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
    next_outer, ends, orders = outer, [outer, inner], [sys.stdin.fileno()]
    try:
        while True:
            for end in select.select([*ends, *orders], [], [])[0]:
                if end in (inner, outer):
                    if ends:
                        os.write(inner if end == outer else outer, os.read(end, 65536))
                    continue
                words = os.read(end, 4096).decode().split()
                if not words:
                    orders = []
                elif words[0] == "at":
                    enter(words[1])
                    next_outer = open_tap(words[2])
                elif words[0] == "stop":
                    ends = []
                else:
                    os.close(outer)
                    outer = next_outer
                    ends = [outer, inner]
                if words:
                    print("ready", flush=True)
    except OSError:
        pass  # unplugged


if __name__ == "__main__":
    main(*sys.argv[1:])

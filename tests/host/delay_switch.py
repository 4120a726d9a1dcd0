"""A network between namespaces in which every packet takes as long as it is told to: ``delay_switch.py NAMESPACE=ADDRESS…``.

Each namespace gets a TUN device with its address; what goes in at one comes out at the one with the packet's destination,
later. Lines on stdin set how much later: ``NAMESPACE NAMESPACE MILLISECONDS``, one way."""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def open_tun(namespace: str, address: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    inside = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(inside, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns {namespace}")
    os.close(inside)
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"t0", IFF_TUN | IFF_NO_PI))
    for command in (f"address add {address}/24 dev t0", "link set t0 up"):
        subprocess.run(["ip", *command.split()], check=True)
    return tun


def main(ends: list[tuple[str, str]]) -> None:
    tuns = {name: open_tun(name, address) for name, address in ends}
    named = {bytes(map(int, address.split("."))): name for name, address in ends}
    by_descriptor = {tun: name for name, tun in tuns.items()}
    delays: dict[frozenset[str], float] = {}
    under_way: list[tuple[float, int, int, bytes]] = []
    print("ready", flush=True)
    while True:
        pause = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for ready in select.select([0, *by_descriptor], [], [], pause)[0]:
            if ready == 0:
                line = os.read(0, 4096)
                if not line:
                    return
                for words in map(str.split, line.decode().splitlines()):
                    delays[frozenset(words[:2])] = float(words[2]) / 1000
                continue
            packet = os.read(ready, 65536)
            to = named.get(packet[16:20])
            if packet[0] >> 4 == 4 and to is not None:
                late = delays.get(frozenset((by_descriptor[ready], to)), 0.0)
                heapq.heappush(under_way, (time.monotonic() + late, len(under_way), tuns[to], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, tun, packet = heapq.heappop(under_way)
            os.write(tun, packet)


if __name__ == "__main__":
    main([(name, address) for name, _, address in (word.partition("=") for word in sys.argv[1:])])

"""Pings an address twenty times a second from a time on, and prints when each answer came (seconds since 1970). Runs by
itself, in a network namespace."""

from __future__ import annotations

import socket
import struct
import sys
import time

EVERY_SECONDS = 0.05


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def main(address: str, begin: float) -> None:
    time.sleep(max(0.0, begin - time.time()))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as line:
        line.settimeout(EVERY_SECONDS)
        number = 0
        while True:
            number = (number + 1) & 0xFFFF
            head = struct.pack("!BBHHH", 8, 0, 0, 7, number)
            began = time.monotonic()
            try:
                line.sendto(struct.pack("!BBHHH", 8, 0, checksum(head), 7, number), (address, 0))
                while (left := began + EVERY_SECONDS - time.monotonic()) > 0:
                    line.settimeout(left)
                    data, sender = line.recvfrom(256)
                    if sender[0] == address and data[20] == 0:  # an echo's answer, after the header of 20 bytes
                        print(f"{time.time():.4f}", flush=True)
            except OSError:
                time.sleep(max(0.0, began + EVERY_SECONDS - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

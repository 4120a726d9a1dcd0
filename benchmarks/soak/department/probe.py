"""Connects to port 80 of an address again and again, and prints when it was answered (seconds since 1970), up to the first answer
after a start. Runs by itself, in a network namespace."""

from __future__ import annotations

import socket
import sys
import time

EVERY_SECONDS, CONNECT_SECONDS = 0.1, 0.3
PORT = 80


def main(address: str, start: float, until: float) -> None:
    while (began := time.time()) < until:
        try:
            with socket.create_connection((address, PORT), CONNECT_SECONDS) as line:
                line.settimeout(CONNECT_SECONDS)
                line.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if line.recv(16):
                    print(f"{time.time():.3f}", flush=True)
                    if began >= start:
                        return
        except OSError:
            pass
        time.sleep(max(0.0, began + EVERY_SECONDS - time.time()))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))

"""Keeps what one container prints: containerd's shim starts it beside the container for as long as that runs, whatever
containerd does.

By containerd's rules for a program that logs, descriptor 3 is the container's stdout, 4 its stderr, and 5 is closed when this
one is ready. Writes the format of conmon's log (``conmon/logs.py``), and turns that over by itself. It imports nothing of weft:
there is one for each container.
"""

import os
import select
import signal
import sys
import time

READ_BYTES = 64 << 10
STREAMS = {3: b"stdout", 4: b"stderr"}
READY = 5


def write_lines(data: bytes, stream: bytes) -> bytes:
    """Pure but for the clock. A line that isn't whole yet is a part (P)."""
    now = time.time_ns()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
    head = b"%s.%09d+00:00 %s " % (whole.encode(), now % 10**9, stream)
    lines = data.split(b"\n")
    rest = lines.pop()
    out = [head + b"F " + line for line in lines]
    if rest:
        out.append(head + b"P " + rest)
    return b"\n".join(out) + b"\n"


def open_log(log: str) -> int:
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def main(log: str, most_bytes: int, user: int, group: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when all is read
    for stream in STREAMS:
        os.fchown(stream, user, group)  # so that the container can open its own /dev/stdout
    file = open_log(log)
    size = os.fstat(file).st_size
    os.close(READY)
    poll = select.poll()
    for stream in STREAMS:
        poll.register(stream, select.POLLIN)
    left = len(STREAMS)
    while left:
        for stream, _ in poll.poll():
            data = os.read(stream, READ_BYTES)
            if not data:
                poll.unregister(stream)
                left -= 1
                continue
            try:
                size += os.write(file, write_lines(data, STREAMS[stream]))
                if size >= most_bytes:
                    os.rename(log, log + ".1")
                    os.close(file)
                    file, size = open_log(log), 0
            except OSError:
                continue  # the disk is full: what can't be kept is lost, the container goes on


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

"""A program of its own that holds file systems frozen for a bounded time: ``python -ISB freeze_holder.py SECONDS FD…``.

It thaws them once its input ends (its parent is done, or was killed), at a signal to end, or when the time is up. Each FD
is an open folder of one file system. Writes a line before the first one, one once all are frozen, and one once all are
thawed. Imports the standard library only, since it starts before every copy.

Source: ioctl_fsfreeze(2), FIFREEZE and FITHAW in the kernel's linux/fs.h.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import sys

FREEZE, THAW = 0xC0045877, 0xC0045878


def main(seconds: float, folders: list[int]) -> int:
    done, wake = os.pipe()
    os.set_blocking(wake, False)
    # Not by the handler: Python calls it only between two steps of its own, and one that came just before select would wait for it.
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    for folder in folders:
        ctypes.CDLL(None).syncfs(folder)  # what waits to be written is written before anybody has to stand still
    frozen, problem = list[int](), ""
    try:
        _report("freezing")
        for folder in folders:
            fcntl.ioctl(folder, FREEZE, 0)
            frozen.append(folder)
        _report("frozen")
        if not select.select([sys.stdin, done], [], [], seconds)[0]:
            problem = "late"
    except OSError as error:
        problem = error.strerror or str(error)
    finally:
        for folder in reversed(frozen):
            with contextlib.suppress(OSError):  # somebody else has thawed it
                fcntl.ioctl(folder, THAW, 0)
    with contextlib.suppress(BrokenPipeError):  # its parent was killed
        _report(problem or "thawed")
    return 1 if problem else 0


def _report(line: str) -> None:
    """Report a line, not by print, which would keep what nobody reads any more, and complain about it at the end."""
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), [int(word) for word in sys.argv[2:]]))

"""What tests of functions on a cluster share: a handler that runs until its test lets it go."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

# event["seconds"] at most, and no longer than until let_go(CODE).
CODE = """
import signal, threading
go = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: go.set())
def handler(event, context):
    go.clear()
    if "n" in event:
        print("RUN", event["n"], flush=True)
    go.wait(event.get("seconds", 0))
    return event.get("n")
"""


def let_go(code: str = CODE) -> None:
    """Whatever runs ``code`` as a process of this machine ends its run."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            runs = b"python" in (process / "cmdline").read_bytes().partition(b"\0")[0]
            if runs and (process / "root/var/task/app.py").read_text() == code:
                os.kill(int(process.name), signal.SIGUSR1)

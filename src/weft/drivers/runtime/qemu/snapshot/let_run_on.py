"""A program of its own that lets a guest run on once its input ends: ``python -ISB let_run_on.py MONITOR [AGENT]``.

The driver that stopped the guest writes a byte first if it has let it run on itself; without one, it was killed. A monitor serves
one client at a time: where the next driver has it already, that one lets the guest run on. AGENT is the socket of qemu-guest-agent,
which doesn't let file systems go by itself. Imports the standard library only, since it starts while a guest is about to wait.
"""

import contextlib
import json
import socket
import sys
from typing import Any

ANSWER_SECONDS = 10.0


def ask(file: Any, command: str) -> Any:
    """QEMU's answer; events in between are passed over."""
    file.write(json.dumps({"execute": command}).encode() + b"\n")
    file.flush()
    while line := file.readline(1 << 20):
        answer = json.loads(line)
        if "return" in answer or "error" in answer:
            return answer.get("return")
    return None


def connect(path: str) -> Any:
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(ANSWER_SECONDS)
    line.connect(path)
    return line.makefile("rwb")


def main(monitor: str, agent: str = "") -> None:
    if sys.stdin.buffer.read(1):
        return
    with contextlib.suppress(OSError, ValueError), connect(monitor) as file:
        file.readline(1 << 20)
        ask(file, "qmp_capabilities")
        if (ask(file, "query-status") or {}).get("status") == "paused":
            ask(file, "cont")
    if agent:
        with contextlib.suppress(OSError, ValueError), connect(agent) as file:
            ask(file, "guest-fsfreeze-thaw")


if __name__ == "__main__":
    main(*sys.argv[1:])

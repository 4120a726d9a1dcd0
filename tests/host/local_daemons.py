"""Stand-ins for weft's daemons in a local cluster: `… weft server --state DIR`, `… weft agent NODE --state DIR`.

They do what the tests look at: the server notes an orderly end; an agent counts its starts, answers TCP with the
caller's address, and leaves a guest behind on its first start. Quick to start: standard library only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

AGENT_PORT = 7001
SLEEP_FOREVER = "import signal\nwhile True: signal.pause()"


def serve(state: Path) -> None:
    """The server: ends at once when a test says it is broken, else when it is told to."""
    if (state.parent / "broken").exists():
        sys.exit("the store is from another world")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    (state / "server.up").touch()
    signal.sigwait([signal.SIGTERM])
    (state.parent / "server.closed").touch()


def act(node_dir: Path) -> None:
    """The agent: one guest that outlives it, a count of its starts, an answer for whoever connects."""
    signal.signal(signal.SIGTERM, lambda *_: ((node_dir / "ended").touch(), os._exit(0)))
    starts = node_dir / "starts"
    count = int(starts.read_text()) if starts.exists() else 0
    if not has_guest(node_dir):
        subprocess.Popen([sys.executable, "-S", "-c", SLEEP_FOREVER, "guest", str(node_dir)], start_new_session=True)
    with socket.create_server(("0.0.0.0", AGENT_PORT)) as server:
        fresh = node_dir / "starts.new"
        fresh.write_text(str(count + 1))
        fresh.rename(starts)
        while True:
            caller, address = server.accept()
            with caller:
                caller.sendall(address[0].encode())


def has_guest(node_dir: Path) -> bool:
    lines = [Path("/proc", pid, "cmdline").read_bytes() for pid in os.listdir("/proc") if pid.isdigit()]
    return any(line.endswith(b"\0guest\0%s\0" % os.fsencode(node_dir)) for line in lines)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["weft", "server", "--state", state]:
            serve(Path(state))
        case ["weft", "agent", node, "--state", state]:
            act(Path(state, "nodes", node))

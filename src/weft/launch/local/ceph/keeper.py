"""Keeps the daemons of a local Ceph cluster running: `python -m weft.launch.local.ceph.keeper weft ceph FOLDER ADDRESS PORT OSDS
BYTES`, the parts of a CephPlan.

Makes what is missing, starts each daemon, and starts it again when it ends. The daemons end with this process, however that ends:
so they never outlive what started it.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from functools import partial
from types import FrameType

from weft.launch.local.ceph.layout import CephPlan
from weft.launch.local.ceph.make import make_monitor, make_others
from weft.objects.errors import WeftError

AGAIN_SECONDS = 5.0  # an OSD that was killed is away for so long, as if its machine had started anew
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


class Keeper:
    def __init__(self, plan: CephPlan) -> None:
        self._plan = plan
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, float] = {}
        self._libc = ctypes.CDLL(None)

    def run(self) -> None:
        """Until a signal; raises WeftError when the cluster can't be made."""
        make_monitor(self._plan)
        self._start("mon.a")
        make_others(self._plan)
        while True:
            for name in self._plan.daemons:
                self._keep(name)
            time.sleep(POLL_SECONDS)

    def _keep(self, name: str) -> None:
        running = self._running.get(name)
        if running is not None and running.poll() is None:
            return
        if running is not None:
            print(f"{name} exited with {running.returncode}; starts again in {AGAIN_SECONDS:g} s", flush=True)
            self._running.pop(name)
            self._ended[name] = time.monotonic()
        if time.monotonic() - self._ended.get(name, -AGAIN_SECONDS) >= AGAIN_SECONDS:
            self._start(name)

    def _start(self, name: str) -> None:
        with open(self._plan.log / f"{name}.out", "ab") as log:
            self._running[name] = subprocess.Popen(
                self._plan.command(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(self._libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL),
            )

    def stop(self) -> None:
        """OSDs first, the monitor last."""
        for name in reversed(self._plan.daemons):
            if (daemon := self._running.get(name)) is not None:
                daemon.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for daemon in self._running.values():
            try:
                daemon.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def keeper_command(plan: CephPlan, *, with_parent: bool = False) -> tuple[str, ...]:
    """``with_parent``: it ends with the process that starts it."""
    numbers = (str(number) for number in (plan.port, plan.osds, plan.osd_bytes))
    words = ("weft", "ceph", *(("--with-parent",) if with_parent else ()), plan.folder, plan.address, *numbers)
    return (sys.executable, "-m", "weft.launch.local.ceph.keeper", *words)


def _leave(_: int, __: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> int:
    folder, address, port, osds, osd_bytes = sys.argv[-5:]
    keeper = Keeper(CephPlan(folder, address, int(port), int(osds), int(osd_bytes)))
    if "--with-parent" in sys.argv:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    try:
        keeper.run()
    except WeftError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    finally:
        keeper.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

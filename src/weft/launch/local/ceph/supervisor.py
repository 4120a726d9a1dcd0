"""Keeps the daemons of a local Ceph cluster running: `python -m weft.launch.local.ceph.supervisor weft ceph FOLDER ADDRESS PORT
OSDS BYTES S3_PORT`, the parts of a CephPlan.

Makes what is missing, starts each daemon, and starts it again when it ends. The daemons end with this process, in whatever way that
ends: so they never outlive what started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import subprocess
import sys

from weft.contracts.clock import Clock, SystemClock
from weft.launch.local.ceph.layout import CephPlan
from weft.launch.local.ceph.make import make_monitor, make_others
from weft.objects.errors import WeftError

AGAIN_SECONDS = 5.0  # an OSD that was killed is away for so long, as if its machine had started anew
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


class Supervisor:
    def __init__(self, plan: CephPlan, clock: Clock) -> None:
        self._plan, self._clock = plan, clock
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, float] = {}

    async def run(self) -> None:
        """Run for ever; raises WeftError when the cluster can't be made."""
        make_monitor(self._plan)
        self._start("mon.a")
        await make_others(self._plan, self._clock)
        while True:
            for name in self._plan.daemons:
                self._keep(name)
            await self._clock.sleep(POLL_SECONDS)

    def _keep(self, name: str) -> None:
        running = self._running.get(name)
        if running is not None and running.poll() is None:
            return
        now = self._clock.elapsed()
        if running is not None:
            print(f"{name} exited with {running.returncode}; starts again in {AGAIN_SECONDS:g} s", flush=True)
            del self._running[name]
            self._ended[name] = now
        if now - self._ended.get(name, now - AGAIN_SECONDS) >= AGAIN_SECONDS:
            self._start(name)

    def _start(self, name: str) -> None:
        with open(self._plan.log / f"{name}.out", "ab") as log:
            words = ["setpriv", "--pdeathsig", "KILL", *self._plan.command(name)]
            self._running[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> None:
        """OSDs first, the monitor last."""
        daemons = [self._running[name] for name in reversed(self._plan.daemons) if name in self._running]
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def supervisor_command(plan: CephPlan, *, with_parent: bool = False) -> tuple[str, ...]:
    """``with_parent``: it ends with the process that starts it."""
    numbers = (str(number) for number in (plan.port, plan.osds, plan.osd_bytes, plan.s3_port))
    words = ("weft", "ceph", *(("--with-parent",) if with_parent else ()), plan.folder, plan.address, *numbers)
    return (sys.executable, "-m", "weft.launch.local.ceph.supervisor", *words)


async def _serve(supervisor: Supervisor) -> None:
    running = asyncio.ensure_future(supervisor.run())
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


def main() -> int:
    folder, address, *numbers = sys.argv[-6:]
    if "--with-parent" in sys.argv:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    port, osds, osd_bytes, s3_port = (int(number) for number in numbers)
    supervisor = Supervisor(CephPlan(folder, address, port, osds, osd_bytes, s3_port=s3_port), SystemClock())
    try:
        asyncio.run(_serve(supervisor))
    except WeftError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    finally:
        supervisor.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

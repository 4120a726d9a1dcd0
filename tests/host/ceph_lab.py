"""A Ceph cluster of a test run's own: one for each worker, gone with it. Tests with one run where CEPH=1 says so."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.launch.local.ceph.layout import CephPlan
from weft.launch.local.ceph.make import wait_ready
from weft.launch.local.ceph.supervisor import supervisor_command

SKIPPED = "CEPH=1 is not set: this test starts a Ceph cluster"
needs_ceph = pytest.mark.skipif(not os.environ.get("CEPH"), reason=SKIPPED)
END_SECONDS = 20


@contextmanager
def run_ceph(address: str = "127.0.0.1", osds: int = 2, osd_bytes: int = 3 << 30) -> Iterator[CephPlan]:
    """It ends with the block, and with the process that began it."""
    folder = tempfile.mkdtemp(prefix="weft-ceph-")
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    plan = CephPlan(folder, address, port, osds, osd_bytes)
    with open(Path(folder) / "supervisor.log", "wb") as log:
        supervisor = subprocess.Popen(supervisor_command(plan, with_parent=True), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not plan.conf.exists():
            assert supervisor.poll() is None and time.monotonic() < deadline, (
                Path(folder) / "supervisor.log"
            ).read_text()
            time.sleep(0.1)
        asyncio.run(wait_ready(plan, SystemClock()))
        yield plan
    finally:
        supervisor.send_signal(signal.SIGTERM)
        try:
            supervisor.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            supervisor.kill()  # its daemons end with it
            supervisor.wait()
        shutil.rmtree(folder, ignore_errors=True)


def place_of(plan: CephPlan) -> str:
    return f"{plan.pool}?conf={plan.conf}"

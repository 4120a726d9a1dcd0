"""README's five minutes, as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest

from tests.cluster.cluster import ROOT, Cluster
from tests.commands import WEFT

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]
FAILS = "exit 1"  # in the version that is meant to


def read_session() -> list[tuple[str, list[str]]]:
    """The commands after ``make up``, each with the lines that README shows of its output."""
    page = (ROOT / "README.md").read_text().partition("## Five minutes\n")[2]
    block = page.partition("$ make up")[2].partition("\n```")[0]
    parts = [part.splitlines() for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(lines[0], lines[1:]) for lines in parts]


def forget_measures(line: str) -> str:
    """It without numbers, places and versions, which differ from run to run, and an error's last words."""
    known = re.sub(r"^(error: .*?): .*", r"\1", line)
    return re.sub(r"\bn[123]\b|\d[\d.]*( (KiB|MiB|ms|s))?\b", "…", known)


def test_the_five_minutes_run_as_printed(cluster: Cluster) -> None:
    environ = os.environ | {"PATH": f"{os.path.dirname(WEFT)}:{os.environ['PATH']}", "COLUMNS": "200"}
    port = str(cluster.free_port())
    for command, shown in read_session():
        if command.startswith("export PATH"):
            continue
        if command.startswith("pkill -9"):
            for pid in cluster.pids("weft server"):
                os.kill(pid, signal.SIGKILL)
            cluster.up()
            continue
        words = command.replace("8097", port)
        done = subprocess.run(["bash", "-c", words], cwd=cluster.folder, env=environ, capture_output=True, timeout=240)
        printed = (done.stdout + done.stderr).decode()
        assert done.returncode == (1 if FAILS in command else 0), f"{command}\n{printed}"
        lines = [forget_measures(line) for line in printed.splitlines()]
        missing = [line for line in shown if forget_measures(line) not in lines]
        assert not missing, f"{command}\n{printed}"
    assert cluster.run("vm", "exec", "box", "--", "true").returncode == 0
    cluster.ok("delete", "deployment/page", "service/page", "vm/box", "snapshot/before", "--yes")

"""An image build that is killed in its middle leaves nothing mounted and nothing running, and its folder goes with the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.images.turn import work_beside

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
MOUNTS = """#!/bin/sh
for root; do :; done
mkdir -p $root/proc $root/early
mount -t tmpfs tmpfs $root/proc
echo $root > $root/proc/mounted
readlink /proc/self/ns/mnt > $root/early/pending
mv $root/early/pending $root/early/mounts
exec sleep 86399
"""
BUILD = """
import sys
from pathlib import Path
from weft.images.{name} import build
from weft.images.turn import work_beside
with work_beside(Path(sys.argv[1]), "{name}") as work:
    build._install(work / "root", *([()] if "{name}" == "debian" else []))
"""


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def running(words: str) -> list[str]:
    """Processes whose command line or root has ``words``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line:
            found.append(line)
    return found


@pytest.mark.parametrize("name", ["debian", "python"])
def test_a_build_that_is_killed_leaves_no_mount_and_no_process_and_the_next_takes_its_folder_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    program = tmp_path / "bin/mmdebstrap"
    program.parent.mkdir()
    program.write_text(MOUNTS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    target = tmp_path / "cache" / f"{name}.tar"
    target.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", BUILD.format(name=name), str(target)]) as build:
        try:
            until(lambda: [*target.parent.glob(".making-*/root/early/mounts")])
            [said] = target.parent.glob(".making-*/root/early/mounts")
            assert said.read_text().strip() != os.readlink("/proc/self/ns/mnt")
            assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
            with work_beside(target, name) as another:  # a build that goes on keeps its folder
                assert said.exists() and another.is_dir()
        finally:
            build.send_signal(signal.SIGKILL)
    until(lambda: not running("sleep 86399"))
    assert said.exists()
    with work_beside(target, name) as work:
        assert [*target.parent.iterdir()] == [work]
    assert [*target.parent.iterdir()] == []

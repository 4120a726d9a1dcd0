"""What this machine's kernel can't show, in a machine of Debian 12: containers under control groups of version 2, by crun and by
runc, and saved as they run. The tests are those that any node's kernel could run."""

from __future__ import annotations

import os
import shutil

import pytest
from machine_lab import TREE, open_machine

pytestmark = [
    pytest.mark.host,
    pytest.mark.long,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None or shutil.which("mmdebstrap") is None,
        reason="needs root, QEMU and mmdebstrap",
    ),
]


async def test_containers_run_under_groups_of_version_2_and_are_saved_as_they_run() -> None:
    async with open_machine() as machine:
        code, kinds = await machine.run("stat -f -c %T /sys/fs/cgroup; criu check")
        assert code == 0 and "cgroup2" in kinds and "Looks good" in kinds
        for file in ("test_container_checkpoint.py", "test_containers.py"):
            code, said = await machine.run(
                f"cd {TREE} && python3 -m pytest -p no:cacheprovider --timeout 900 -q -rs tests/host/{file} 2>&1 | tail -60"
            )
            told = said.strip().splitlines()[-1]
            assert "passed" in told and "failed" not in told and "error" not in told, said
            assert "criu" not in said or file != "test_container_checkpoint.py", (
                said
            )  # none was left out for want of it

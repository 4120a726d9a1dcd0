"""A command beside a container waits until the container's first process runs the container's program."""

import os
import shutil
import subprocess
from pathlib import Path

from weft.contracts.clock import SystemClock
from weft.drivers.runtime.oci.exec.begin import wait_for_program


async def test_a_first_process_that_is_the_runtime_still_is_waited_for(tmp_path: Path) -> None:
    runtime = tmp_path / "crun"
    shutil.copy("/bin/sh", runtime)
    with subprocess.Popen([str(runtime), "-c", "read line; exec sleep 60"], stdin=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            exe = f"/proc/{process.pid}/exe"
            assert os.path.samefile(exe, runtime)
            process.stdin.write(b"go on\n")
            process.stdin.flush()
            await wait_for_program(process.pid, str(runtime), SystemClock())
            assert os.readlink(exe) == os.path.realpath(shutil.which("sleep") or "")
        finally:
            process.kill()


async def test_one_that_never_becomes_anything_else_holds_nobody_up_for_good(tmp_path: Path) -> None:
    class Clock(SystemClock):
        now_at = 0.0

        def elapsed(self) -> float:
            return self.now_at

        async def sleep(self, seconds: float) -> None:
            self.now_at += seconds

    clock = Clock()
    runtime = tmp_path / "runc"
    shutil.copy("/bin/sh", runtime)
    with subprocess.Popen([str(runtime), "-c", "read line"], stdin=subprocess.PIPE) as process:
        await wait_for_program(process.pid, str(runtime), clock)
        process.kill()
    assert 5.0 <= clock.now_at < 5.1


async def test_a_process_that_has_gone_is_not_waited_for() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    await wait_for_program(process.pid, "/bin/true", SystemClock())
